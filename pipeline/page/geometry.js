// Stored points to clouds in the normalised space, and the matrices of the view. The page joins geometry.js, painters.js
// and viewer.js, in this order, into one strict function.
// Shapes: n points, T tokens. World: right-handed, z up. Matrices are column-major, as WebGL takes them.

// What goes wrong is left on the page, where a person or a test can find it.
const complain = (what) => {
  document.body.dataset.error = [document.body.dataset.error, what].filter(Boolean).join(" | ");
};
window.addEventListener("error", (event) => complain(event.message));
window.addEventListener("unhandledrejection", (event) => complain(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => complain(`blocked ${event.blockedURI}`));

const data = JSON.parse(document.getElementById("page-data").textContent);
const MODES = ["rgb", "pca", "token", "conf", "depth"];
const FIELD_OF_VIEW = 38 * Math.PI / 180;

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const shortsOf = (text) => new Uint16Array(bytesOf(text).buffer);

/** World [3] of pixel (u, v) at a depth: R^T (camera - t). */
function unproject(u, v, depth, [fx, fy, cx, cy], e) {
  const x = (u - cx) / fx * depth - e[3], y = (v - cy) / fy * depth - e[7], z = depth - e[11];
  return [e[0] * x + e[4] * y + e[8] * z, e[1] * x + e[5] * y + e[9] * z, e[2] * x + e[6] * y + e[10] * z];
}

const normalise = (p, n) => [(p[0] - n[0]) * n[3], (p[1] - n[1]) * n[3], (p[2] - n[2]) * n[3]];

/** Colour of a row: hues a golden angle apart, so that rows that are neighbours look different. */
function tokenColour(token) {
  const hue = token * 0.61803398875 % 1, light = 0.55 + 0.13 * ((token * 7) % 3 - 1);
  return [0, 1 / 3, 2 / 3].map((turn) => {
    const wave = Math.abs(((hue + turn) % 1) * 6 - 3) - 1;
    return 255 * (light + 0.55 * (Math.min(Math.max(wave, 0), 1) - 0.5) * (1 - Math.abs(2 * light - 1)));
  });
}

const decoded = new Map();

/** Positions [3n], splat sizes [n] and the colours [3n] of each mode of a frame. */
function cloudOf(clipIndex, frameIndex) {
  const name = `${clipIndex}/${frameIndex}`;
  if (decoded.has(name)) return decoded.get(name);
  const clip = data.clips[clipIndex], frame = clip.frames[frameIndex];
  const pixel = shortsOf(frame.pixel), depth = shortsOf(frame.depth), conf = bytesOf(frame.conf);
  const count = shortsOf(frame.count), pca = bytesOf(frame.pca), n = pixel.length;
  const position = new Float32Array(3 * n), size = new Float32Array(n);
  const colours = { rgb: bytesOf(frame.rgb) };
  for (const mode of MODES.slice(1)) colours[mode] = new Uint8Array(3 * n);
  const ramp = (table, value, [low, high], out, at) => {
    const share = high > low ? (value - low) / (high - low) : 1; // where all are equal, all are the greatest
    const level = Math.round(255 * Math.min(Math.max(share, 0), 1));
    out.set(table.subarray(3 * level, 3 * level + 3), at);
  };
  // a point stands for width^2 / n pixels of the frame: its splat is as wide as they are at its depth
  const footprint = Math.sqrt(data.width * data.width / Math.max(n, 1)) / frame.intrinsic[0] * frame.normalisation[3];
  let token = 0, left = count[0];
  for (let i = 0; i < n; i += 1) {
    while (left === 0) left = count[token += 1];
    left -= 1;
    const d = frame.range[0] + depth[i] / 65535 * (frame.range[1] - frame.range[0]);
    const c = frame.confRange[0] + conf[i] / 255 * (frame.confRange[1] - frame.confRange[0]);
    const at = unproject(pixel[i] % data.width, Math.floor(pixel[i] / data.width), d, frame.intrinsic, frame.extrinsic);
    position.set(normalise(at, frame.normalisation), 3 * i);
    size[i] = d * footprint;
    colours.pca.set(pca.subarray(3 * token, 3 * token + 3), 3 * i);
    colours.token.set(tokenColour(token), 3 * i);
    ramp(maps.conf, c, clip.confScale, colours.conf, 3 * i);
    ramp(maps.depth, d, clip.depthScale, colours.depth, 3 * i);
  }
  const cloud = { n, position, size, colours };
  decoded.set(name, cloud);
  return cloud;
}

const maps = { depth: bytesOf(data.maps.depth), conf: bytesOf(data.maps.conf) };

/** The value below which a share of `values` lies; they are sorted in place. */
const quantile = (values, share) => values.sort()[Math.min(Math.floor(values.length * share), values.length - 1)] || 0;

/** Centre, radius and floor of a cloud without its extreme points. */
function boundsOf(cloud) {
  const low = [], high = [];
  for (let axis = 0; axis < 3; axis += 1) {
    const values = Float32Array.from({ length: cloud.n }, (_, i) => cloud.position[3 * i + axis]);
    low.push(quantile(values, 0.02));
    high.push(quantile(values, 0.98));
  }
  const centre = low.map((value, axis) => (value + high[axis]) / 2);
  return { low, high, centre, radius: Math.max(Math.hypot(...low.map((value, a) => high[a] - value)) / 2, 1e-3) };
}

/** Where a frame's camera stands, and the corners of its picture some way in front of it. */
function frustumOf(frame, length) {
  const w = data.width - 0.5, at = length / (frame.normalisation[3] || 1);
  const place = (u, v, d) => normalise(unproject(u, v, d, frame.intrinsic, frame.extrinsic), frame.normalisation);
  return { eye: place(0, 0, 0), corners: [[-0.5, -0.5], [w, -0.5], [w, w], [-0.5, w]].map(([u, v]) => place(u, v, at)) };
}

function frustumLines(frame, length) {
  const { eye, corners } = frustumOf(frame, length);
  return corners.flatMap((corner, i) => [...eye, ...corner, ...corner, ...corners[(i + 1) % 4]]);
}

/** A grid on the floor, its step a round number. */
function gridLines({ low, centre, radius }) {
  const raw = radius / 4, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw);
  const reach = Math.ceil(radius * 1.05 / step), x = Math.round(centre[0] / step), y = Math.round(centre[1] / step);
  const lines = [], z = low[2];
  for (let i = -reach; i <= reach; i += 1) {
    lines.push((x + i) * step, (y - reach) * step, z, (x + i) * step, (y + reach) * step, z);
    lines.push((x - reach) * step, (y + i) * step, z, (x + reach) * step, (y + i) * step, z);
  }
  return lines;
}

// ---- Matrices -----------------------------------------------------------------------------------------------

const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const unit = (a) => a.map((value) => value / (Math.hypot(...a) || 1));

/** Right, up and backward of the orbit's camera, and where it stands. */
function orbitFrame(orbit) {
  const back = [
    Math.cos(orbit.elevation) * Math.cos(orbit.azimuth),
    Math.cos(orbit.elevation) * Math.sin(orbit.azimuth),
    Math.sin(orbit.elevation),
  ];
  const right = [-Math.sin(orbit.azimuth), Math.cos(orbit.azimuth), 0];
  const eye = orbit.target.map((value, axis) => value + back[axis] * orbit.distance);
  return { right, up: cross(back, right), back, eye };
}

function viewProjection(orbit, aspect) {
  const { right, up, back, eye } = orbitFrame(orbit);
  const f = 1 / Math.tan(FIELD_OF_VIEW / 2), near = orbit.distance / 50, far = orbit.distance * 50;
  const rows = [right.map((v) => v * f / aspect), up.map((v) => v * f), back, back.map((v) => -v)];
  const shift = rows.map((row) => -dot(row, eye));
  const [a, b] = [(far + near) / (near - far), 2 * far * near / (near - far)];
  rows[2] = back.map((v) => v * a);
  shift[2] = -dot(rows[2], eye) + b;
  return [0, 1, 2].flatMap((axis) => rows.map((row) => row[axis])).concat(shift);
}

/** The target and distance from which a direction shows nearly all points, in the middle and as large as they fit. */
function fitView(cloud, { centre, radius }, azimuth, elevation, aspect) {
  const { right, up, back } = orbitFrame({ azimuth, elevation, distance: 0, target: centre });
  const [x, y, toward] = [right, up, back].map((axis) => Float32Array.from({ length: cloud.n }, (_, i) => (
    dot(axis, [0, 1, 2].map((k) => cloud.position[3 * i + k] - centre[k]))
  )));
  const reach = Math.tan(FIELD_OF_VIEW / 2) * 0.76;
  let shift = [0, 0], distance = radius * 3;
  for (let round = 0; round < 5; round += 1) {
    // where points land on the screen, as tangents of their angles to its middle
    const spans = [x, y].map((values, axis) => {
      const seen = values.map((value, i) => (value - shift[axis]) / Math.max(distance - toward[i], radius * 0.05));
      return [quantile(seen, 0.015), quantile(seen, 0.985)];
    });
    shift = shift.map((value, axis) => value + (spans[axis][0] + spans[axis][1]) / 2 * distance);
    const [wide, tall] = spans.map(([low, high]) => (high - low) / 2);
    distance = Math.min(Math.max(distance * Math.max(wide / aspect, tall) / reach, radius * 0.9), radius * 8);
  }
  return { target: centre.map((value, k) => value + shift[0] * right[k] + shift[1] * up[k]), distance };
}
