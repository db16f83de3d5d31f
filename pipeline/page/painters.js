// Two painters with one interface: paint({ cloud, mode, lines, matrix, scale, near, far, width, height, pixelRatio })
// draws, read() gives back the RGBA bytes of what was drawn.

const POINTS_VERTEX = `#version 300 es
  in vec3 position; in vec3 colour; in float size;
  uniform mat4 matrix; uniform float scale;
  out vec3 tint;
  void main() {
    tint = colour;
    gl_Position = matrix * vec4(position, 1.0);
    gl_PointSize = clamp(scale * size / gl_Position.w, 1.5, 128.0);
  }`;
const POINTS_FRAGMENT = `#version 300 es
  precision highp float;
  in vec3 tint; out vec4 colour;
  void main() {
    vec2 at = gl_PointCoord - 0.5;
    if (dot(at, at) > 0.25) discard;
    colour = vec4(tint, 1.0);
  }`;
const LINES_VERTEX = `#version 300 es
  in vec3 position; uniform mat4 matrix;
  void main() { gl_Position = matrix * vec4(position, 1.0); }`;
const LINES_FRAGMENT = `#version 300 es
  precision highp float;
  uniform vec4 tint; out vec4 colour;
  void main() { colour = vec4(tint.rgb * tint.a, tint.a); }`;
// Eye-dome lighting (Boucheny 2009): a pixel is darker the farther it lies behind its neighbours. It gives
// a cloud without normals the edges that make its shape readable.
const SHADE_VERTEX = `#version 300 es
  void main() { gl_Position = vec4(vec2(gl_VertexID % 2, gl_VertexID / 2) * 4.0 - 1.0, 0.0, 1.0); }`;
const SHADE_FRAGMENT = `#version 300 es
  precision highp float;
  uniform sampler2D colours; uniform highp sampler2D depths; uniform float near; uniform float far;
  uniform float reach; uniform float strength;
  out vec4 colour;
  float distance_at(ivec2 at) {
    float z = texelFetch(depths, clamp(at, ivec2(0), textureSize(depths, 0) - 1), 0).r;
    return log2(2.0 * near * far / (far + near - (2.0 * z - 1.0) * (far - near)));
  }
  void main() {
    ivec2 at = ivec2(gl_FragCoord.xy);
    vec4 tint = texelFetch(colours, at, 0);
    if (tint.a < 0.5) discard;
    float own = distance_at(at), behind = 0.0;
    for (int i = 0; i < 8; i += 1) {
      float turn = 0.7853981634 * float(i);
      behind += clamp(own - distance_at(at + ivec2(round(vec2(cos(turn), sin(turn)) * reach))), 0.0, 0.05);
    }
    colour = vec4(tint.rgb * exp(-strength * behind), 1.0);
    gl_FragDepth = texelFetch(depths, at, 0).r;
  }`;

class GlPainter {
  constructor(canvas) {
    this.name = "webgl2";
    this.gl = canvas.getContext("webgl2", { alpha: true, antialias: false, powerPreference: "low-power" });
    if (!this.gl) throw new Error("no WebGL 2");
    const gl = this.gl;
    this.points = this.program(POINTS_VERTEX, POINTS_FRAGMENT);
    this.lines = this.program(LINES_VERTEX, LINES_FRAGMENT);
    this.shade = this.program(SHADE_VERTEX, SHADE_FRAGMENT);
    this.buffers = { position: gl.createBuffer(), size: gl.createBuffer(), colour: gl.createBuffer(), line: gl.createBuffer() };
    this.cloudArray = gl.createVertexArray();
    this.lineArray = gl.createVertexArray();
    this.emptyArray = gl.createVertexArray();
    this.target = gl.createFramebuffer();
    this.samples = 2; // drawn twice as fine as the screen: the browser's scaling smooths the edges
  }

  program(vertex, fragment) {
    const gl = this.gl, program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) || "no shader");
    return program;
  }

  resize(width, height) {
    const gl = this.gl;
    for (const old of [this.colours, this.depths]) if (old) gl.deleteTexture(old);
    const texture = (inner, attachment) => {
      const made = gl.createTexture();
      gl.bindTexture(gl.TEXTURE_2D, made);
      gl.texStorage2D(gl.TEXTURE_2D, 1, inner, width, height);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, attachment, gl.TEXTURE_2D, made, 0);
      return made;
    };
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target);
    this.colours = texture(gl.RGBA8, gl.COLOR_ATTACHMENT0);
    this.depths = texture(gl.DEPTH_COMPONENT24, gl.DEPTH_ATTACHMENT);
  }

  attribute(program, name, buffer, values, parts, kind, normalised) {
    const gl = this.gl, at = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, parts, kind, normalised, 0, 0);
  }

  load(cloud, mode) {
    if (this.loaded === cloud && this.mode === mode) return;
    const gl = this.gl;
    gl.bindVertexArray(this.cloudArray);
    this.attribute(this.points, "position", this.buffers.position, cloud.position, 3, gl.FLOAT, false);
    this.attribute(this.points, "size", this.buffers.size, cloud.size, 1, gl.FLOAT, false);
    this.attribute(this.points, "colour", this.buffers.colour, cloud.colours[mode], 3, gl.UNSIGNED_BYTE, true);
    [this.loaded, this.mode] = [cloud, mode];
  }

  paint({ cloud, mode, lines, matrix, scale, near, far, width, height, pixelRatio }) {
    const gl = this.gl, at = (program, name) => gl.getUniformLocation(program, name);
    if (this.width !== width || this.height !== height) {
      this.resize(width, height);
      [this.width, this.height] = [width, height];
    }
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target);
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
    gl.disable(gl.BLEND);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    this.load(cloud, mode);
    gl.bindVertexArray(this.cloudArray);
    gl.useProgram(this.points);
    gl.uniformMatrix4fv(at(this.points, "matrix"), false, matrix);
    gl.uniform1f(at(this.points, "scale"), scale);
    gl.drawArrays(gl.POINTS, 0, cloud.n);

    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.bindVertexArray(this.emptyArray);
    gl.useProgram(this.shade);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.colours);
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, this.depths);
    gl.uniform1i(at(this.shade, "colours"), 0);
    gl.uniform1i(at(this.shade, "depths"), 1);
    gl.uniform1f(at(this.shade, "near"), near);
    gl.uniform1f(at(this.shade, "far"), far);
    gl.uniform1f(at(this.shade, "reach"), 1.4 * pixelRatio);
    gl.uniform1f(at(this.shade, "strength"), 5);
    gl.drawArrays(gl.TRIANGLES, 0, 3);

    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.bindVertexArray(this.lineArray);
    gl.useProgram(this.lines);
    gl.uniformMatrix4fv(at(this.lines, "matrix"), false, matrix);
    for (const [tint, vertices] of lines) {
      this.attribute(this.lines, "position", this.buffers.line, new Float32Array(vertices), 3, gl.FLOAT, false);
      gl.uniform4fv(at(this.lines, "tint"), tint);
      gl.drawArrays(gl.LINES, 0, vertices.length / 3);
    }
  }

  /** Red, green, blue and alpha of the points alone. */
  read() {
    const gl = this.gl, pixels = new Uint8Array(4 * this.width * this.height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target);
    gl.readPixels(0, 0, this.width, this.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    return pixels;
  }
}

class FlatPainter {
  constructor(canvas) {
    this.name = "2d";
    this.context = canvas.getContext("2d");
    this.samples = 1;
  }

  paint({ cloud, mode, lines, matrix, scale, width, height, pixelRatio }) {
    const image = this.context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer), depths = new Float32Array(width * height).fill(Infinity);
    const project = (p, at) => {
      const w = matrix[3] * p[at] + matrix[7] * p[at + 1] + matrix[11] * p[at + 2] + matrix[15];
      const x = matrix[0] * p[at] + matrix[4] * p[at + 1] + matrix[8] * p[at + 2] + matrix[12];
      const y = matrix[1] * p[at] + matrix[5] * p[at + 1] + matrix[9] * p[at + 2] + matrix[13];
      return [(x / w + 1) / 2 * width, (1 - y / w) / 2 * height, w];
    };
    const colours = cloud.colours[mode];
    for (let i = 0; i < cloud.n; i += 1) {
      const [x, y, w] = project(cloud.position, 3 * i);
      if (w <= 0) continue;
      const half = Math.min(Math.max(scale * cloud.size[i] / w, 1.5), 64) / 2;
      const tint = (255 << 24 | colours[3 * i + 2] << 16 | colours[3 * i + 1] << 8 | colours[3 * i]) >>> 0;
      const [left, right] = [Math.max(Math.round(x - half), 0), Math.min(Math.round(x + half), width)];
      const [top, bottom] = [Math.max(Math.round(y - half), 0), Math.min(Math.round(y + half), height)];
      for (let row = top; row < bottom; row += 1) {
        for (let at = row * width + left; at < row * width + right; at += 1) {
          if (w < depths[at]) [depths[at], pixels[at]] = [w, tint];
        }
      }
    }
    this.image = image;
    this.context.putImageData(image, 0, 0);
    this.context.lineWidth = pixelRatio;
    for (const [[red, green, blue, alpha], vertices] of lines) {
      this.context.strokeStyle = `rgba(${red * 255},${green * 255},${blue * 255},${alpha})`;
      this.context.beginPath();
      for (let at = 0; at < vertices.length; at += 6) {
        const [x0, y0, w0] = project(vertices, at), [x1, y1, w1] = project(vertices, at + 3);
        if (w0 <= 0 || w1 <= 0) continue;
        // the far half of a line that runs behind points is hidden only in WebGL; here lines lie under the points
        this.context.moveTo(x0, y0);
        this.context.lineTo(x1, y1);
      }
      this.context.globalCompositeOperation = "destination-over";
      this.context.stroke();
    }
    this.context.globalCompositeOperation = "source-over";
  }

  read() {
    return this.image.data;
  }
}
