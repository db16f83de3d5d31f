// The viewer's state and its controls: what is shown, from where, and what the reader may change. It draws with WebGL 2,
// or on a plain 2D canvas where there is none. The address keeps the state: #clip=1&frame=2&color=pca&painter=2d.

function main(stage) {
  const LINES = { grid: [0.5, 0.52, 0.56, 0.28], frustum: [0.93, 0.53, 0.18, 0.95] };
  let canvas = document.getElementById("cloud");
  const state = { clip: 0, frame: 0, color: "rgb", size: 1, camera: true, grid: true };
  const orbit = { target: [0, 0, 0], distance: 4, azimuth: 0, elevation: 0.5 };
  let painter = null, bounds = null, home = null, queued = false, playing = null;

  function makePainter(wanted) {
    if (wanted !== "2d") {
      try {
        return new GlPainter(canvas);
      } catch (problem) {
        stage.dataset.fallback = problem.message;
        // a canvas that was asked for WebGL gives no 2D context any more
        const fresh = canvas.cloneNode();
        canvas.replaceWith(fresh);
        canvas = fresh;
      }
    }
    return new FlatPainter(canvas);
  }

  /** Look at a clip from a little beside and above where its camera stood. */
  function lookAtClip() {
    const frame = data.clips[state.clip].frames[state.frame];
    bounds = boundsOf(cloudOf(state.clip, state.frame));
    const { eye } = frustumOf(frame, bounds.radius);
    const from = unit(eye.map((value, axis) => value - bounds.centre[axis]));
    const azimuth = Math.atan2(from[1], from[0]) + 0.5, elevation = Math.min(Math.max(Math.asin(from[2]) + 0.12, 0.3), 1.2);
    const aspect = stage.clientWidth / Math.max(stage.clientHeight, 1);
    home = { azimuth, elevation, ...fitView(cloudOf(state.clip, state.frame), bounds, azimuth, elevation, aspect) };
    Object.assign(orbit, home, { target: [...home.target] });
  }

  function paint() {
    queued = false;
    const screen = window.devicePixelRatio || 1, pixelRatio = Math.max(screen, painter.samples);
    const width = Math.max(1, Math.round(stage.clientWidth * pixelRatio));
    const height = Math.max(1, Math.round(stage.clientHeight * pixelRatio));
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const cloud = cloudOf(state.clip, state.frame), frame = data.clips[state.clip].frames[state.frame];
    const lines = [];
    if (state.grid) lines.push([LINES.grid, gridLines(bounds)]);
    if (state.camera) lines.push([LINES.frustum, frustumLines(frame, bounds.radius * 0.3)]);
    painter.paint({
      cloud, mode: state.color, lines, width, height, pixelRatio,
      matrix: viewProjection(orbit, width / height),
      scale: 1.4 * state.size * height / 2 / Math.tan(FIELD_OF_VIEW / 2),
      near: orbit.distance / 50, far: orbit.distance * 50,
    });
    drawTriad();
  }

  function redraw() {
    if (queued) return;
    queued = true;
    requestAnimationFrame(paint);
  }

  /** Leave on the canvas what was drawn: how many pixels the points cover, their mean colour, the cloud's extent. */
  function report() {
    const pixels = painter.read(), sum = [0, 0, 0];
    let lit = 0;
    for (let at = 0; at < pixels.length; at += 4) {
      if (pixels[at + 3] < 128) continue;
      lit += 1;
      for (let axis = 0; axis < 3; axis += 1) sum[axis] += pixels[at + axis];
    }
    Object.assign(canvas.dataset, {
      painter: painter.name, points: cloudOf(state.clip, state.frame).n, lit,
      mean: sum.map((value) => Math.round(value / Math.max(lit, 1))).join(","),
      clip: state.clip, frame: state.frame, color: state.color, low: bounds.low.join(","), high: bounds.high.join(","),
    });
  }

  const triad = ["x", "y", "z"].map((name) => document.getElementById(`axis-${name}`));

  function drawTriad() {
    const { right, up, back } = orbitFrame(orbit);
    triad.map((group, axis) => ({ group, x: right[axis] * 24, y: -up[axis] * 24, near: back[axis] }))
      .sort((a, b) => a.near - b.near)
      .forEach(({ group, x, y, near }) => {
        const [line, label] = group.children;
        line.setAttribute("x2", x);
        line.setAttribute("y2", y);
        label.setAttribute("x", x * 1.38);
        label.setAttribute("y", y * 1.38);
        group.style.opacity = 0.62 + 0.38 * near;
        group.parentNode.append(group); // the nearest last, over the others
      });
  }

  // ---- Controls -----------------------------------------------------------------------------------------------

  const byId = (id) => document.getElementById(id);
  const frameSlider = byId("frame-slider"), playButton = byId("play");

  /** Show what `state` says: pressed buttons, the picture beside the cloud, its facts, the legend, the address. */
  function show({ look = false, note = true } = {}) {
    const clip = data.clips[state.clip], frame = clip.frames[state.frame];
    if (look) lookAtClip();
    document.querySelectorAll("[data-clip-button]").forEach((button) => {
      button.setAttribute("aria-pressed", String(Number(button.dataset.clipButton) === state.clip));
    });
    document.querySelectorAll("[data-color-button]").forEach((button) => {
      button.setAttribute("aria-pressed", String(button.dataset.colorButton === state.color));
    });
    document.querySelectorAll("[data-legend]").forEach((legend) => { legend.hidden = legend.dataset.legend !== state.color; });
    for (const kind of ["image", "depth"]) {
      const source = document.querySelector(`img[data-of="${kind}"][data-at="${state.clip}/${state.frame}"]`);
      byId(`now-${kind}`).hidden = !source;
      if (source) byId(`now-${kind}`).src = source.src;
    }
    byId("now-text").textContent = clip.text || clip.key;
    byId("now-key").textContent = clip.key;
    byId("now-time").textContent = `${frame.time.toFixed(2)} s`;
    byId("now-number").textContent = `${frame.number + 1} of ${clip.length}`;
    byId("now-points").textContent = frame.points.toLocaleString("en");
    byId("now-tokens").textContent = frame.tokens.toLocaleString("en");
    byId("now-share").textContent = `${(frame.points / Math.max(frame.tokens, 1)).toFixed(1)} points a row`;
    for (const [name, [low, high]] of [["depth", clip.depthScale], ["conf", clip.confScale]]) {
      byId(`${name}-low`).textContent = low < high ? low.toPrecision(3) : "";
      byId(`${name}-high`).textContent = low < high ? high.toPrecision(3) : `${high.toPrecision(3)} everywhere`;
    }
    frameSlider.max = clip.frames.length - 1;
    frameSlider.value = state.frame;
    frameSlider.setAttribute("aria-valuetext", `frame ${frame.number + 1}, ${frame.time.toFixed(2)} s`);
    if (note) history.replaceState(null, "", `#clip=${state.clip}&frame=${state.frame}&color=${state.color}`);
    if (playing) redraw(); else { paint(); report(); }
  }

  function play(on) {
    clearInterval(playing);
    playing = on ? setInterval(() => {
      state.frame = (state.frame + 1) % data.clips[state.clip].frames.length;
      show({ note: false });
    }, 420) : null;
    playButton.setAttribute("aria-pressed", String(on));
    playButton.setAttribute("aria-label", on ? "Pause" : "Play the frames");
  }

  function readAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const within = (name, count) => Math.min(Math.max(Number.parseInt(wanted.get(name), 10) || 0, 0), count - 1);
    if (wanted.has("clip")) state.clip = within("clip", data.clips.length);
    if (wanted.has("frame") || wanted.has("clip")) state.frame = within("frame", data.clips[state.clip].frames.length);
    if (MODES.includes(wanted.get("color"))) state.color = wanted.get("color");
    return wanted;
  }

  function choose(clip, frame) {
    const other = clip !== state.clip;
    play(false);
    [state.clip, state.frame] = [clip, frame];
    show({ look: other });
  }

  document.querySelectorAll("[data-clip-button]").forEach((button) => {
    button.addEventListener("click", () => choose(Number(button.dataset.clipButton), 0));
  });
  document.querySelectorAll("[data-goto]").forEach((button) => {
    button.addEventListener("click", () => {
      choose(...button.dataset.goto.split("/").map(Number));
      byId("viewer").scrollIntoView({ behavior: "smooth" });
    });
  });
  document.querySelectorAll("[data-color-button]").forEach((button) => {
    button.addEventListener("click", () => { state.color = button.dataset.colorButton; show(); });
  });
  frameSlider.addEventListener("input", () => { play(false); state.frame = Number(frameSlider.value); show(); });
  playButton.addEventListener("click", () => { play(!playing); if (!playing) show(); });
  byId("point-size").addEventListener("input", (event) => { state.size = 2 ** Number(event.target.value); redraw(); });
  byId("show-camera").addEventListener("change", (event) => { state.camera = event.target.checked; redraw(); });
  byId("show-grid").addEventListener("change", (event) => { state.grid = event.target.checked; redraw(); });
  byId("reset").addEventListener("click", () => reset());
  window.addEventListener("hashchange", () => { readAddress(); show({ look: true, note: false }); });

  function reset() {
    Object.assign(orbit, home, { target: [...home.target] });
    redraw();
  }

  function turn(dx, dy) {
    orbit.azimuth -= dx * 0.008;
    orbit.elevation = Math.min(Math.max(orbit.elevation + dy * 0.008, -1.55), 1.55);
    redraw();
  }

  function pan(dx, dy) {
    const { right, up } = orbitFrame(orbit);
    const step = 2 * Math.tan(FIELD_OF_VIEW / 2) * orbit.distance / stage.clientHeight;
    orbit.target = orbit.target.map((value, axis) => value + (-dx * right[axis] + dy * up[axis]) * step);
    redraw();
  }

  function zoom(factor) {
    orbit.distance = Math.min(Math.max(orbit.distance * factor, home.distance / 40), home.distance * 12);
    redraw();
  }

  const fingers = new Map();
  stage.addEventListener("pointerdown", (event) => {
    if (event.target.closest("button, label, input")) return;
    stage.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    stage.classList.add("held");
  });
  stage.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const now = [event.clientX, event.clientY], dx = now[0] - last[0], dy = now[1] - last[1];
    if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
      const span = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
      zoom(span(last, other) / Math.max(span(now, other), 1));
      pan(dx / 2, dy / 2);
    } else if (event.shiftKey || event.buttons & 2) pan(dx, dy);
    else turn(dx, dy);
    fingers.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    stage.addEventListener(end, (event) => {
      fingers.delete(event.pointerId);
      if (!fingers.size) stage.classList.remove("held");
    });
  }
  stage.addEventListener("contextmenu", (event) => event.preventDefault());
  stage.addEventListener("dblclick", reset);
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(Math.min(Math.max(event.deltaY * (event.deltaMode ? 0.05 : 0.0015), -0.5), 0.5)));
  }, { passive: false });
  stage.addEventListener("keydown", (event) => {
    const act = {
      ArrowLeft: () => turn(-20, 0), ArrowRight: () => turn(20, 0), ArrowUp: () => turn(0, 20), ArrowDown: () => turn(0, -20),
      "+": () => zoom(0.9), "=": () => zoom(0.9), "-": () => zoom(1.1), 0: reset,
    }[event.key];
    if (!act || event.target !== stage) return;
    event.preventDefault();
    act();
  });

  const address = readAddress();
  painter = makePainter(address.get("painter"));
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => { painter = new GlPainter(canvas); redraw(); });
  show({ look: true, note: false });
  if (painter.name === "webgl2" && Number(canvas.dataset.lit) === 0 && Number(canvas.dataset.points) > 0) {
    // a driver that draws nothing is as good as none
    stage.dataset.fallback = "WebGL drew nothing";
    const fresh = canvas.cloneNode();
    canvas.replaceWith(fresh);
    canvas = fresh;
    painter = new FlatPainter(canvas);
    show({ note: false });
  }
  new ResizeObserver(redraw).observe(stage);
  document.documentElement.classList.add("ready");
}

if (document.getElementById("stage")) main(document.getElementById("stage")); // a store without clips has no viewer
