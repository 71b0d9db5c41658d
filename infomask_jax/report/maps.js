// Heat map -> prepared map -> region -> boxes and IoU, as localize.py and evaluate/ do it in float32.
// Maps are flat, row by row; boxes are [ymin, xmin, ymax, xmax] in 0..1 of the image.

function half(bits) {
  // float16 -> number
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
  return bits >> 15 ? -size : size;
}

function decode(text, isHalf) {
  // base64 of float16 or float32, little-endian -> Float32Array
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer), size = isHalf ? 2 : 4;
  const read = (i) => (isHalf ? half(view.getUint16(2 * i, true)) : view.getFloat32(4 * i, true));
  return Float32Array.from({ length: bytes.length / size }, (_, i) => read(i));
}

function decodeRuns(runs) {
  // run lengths (false, true, false, ...) -> Uint8Array
  const mask = new Uint8Array(runs.reduce((a, b) => a + b, 0));
  runs.reduce((at, n, i) => (i % 2 && mask.fill(1, at, at + n), at + n), 0);
  return mask;
}

function prepareMap(heat, [h, w], side) {
  // localize.prepare_map: take off the minimum, enlarge to side x side, min-max
  const low = least(heat);
  const large = enlarge(heat.map((v) => v - low), h, w, side);
  const floor = least(large), range = Math.fround(-least(large.map((v) => -v)) - floor);
  return large.map((v) => (range > 0 ? Math.fround(v - floor) / range : 0));
}

const least = (values) => values.reduce((a, b) => Math.min(a, b));

function enlarge(heat, h, w, side) {
  // cv2.INTER_LINEAR: half-pixel centres, edges repeated, first along rows
  const mix = (a, b, part) => Math.fround(a + Math.fround(b - a) * part);
  const [x, y] = [w, h].map((n) => Array.from({ length: side }, (_, i) => {
    const at = Math.min(Math.max(Math.fround(((i + 0.5) * n) / side - 0.5), 0), n - 1), low = Math.floor(at);
    return [low, Math.min(low + 1, n - 1), Math.fround(at - low)];
  }));
  const rows = new Float32Array(h * side), out = new Float32Array(side * side);
  for (let i = 0; i < h; i++) x.forEach(([a, b, part], j) => {
    rows[i * side + j] = mix(heat[i * w + a], heat[i * w + b], part);
  });
  y.forEach(([a, b, part], i) => {
    for (let j = 0; j < side; j++) out[i * side + j] = mix(rows[a * side + j], rows[b * side + j], part);
  });
  return out;
}

function regionBoxes(map, side, threshold) {
  // localize.region_boxes: tight boxes of 8-connected {s >= threshold}, from top to bottom, then left to right
  const inside = Uint8Array.from(map, (s) => s >= Math.fround(threshold)), boxes = [];
  for (let first = 0; first < inside.length; first++) {
    if (!inside[first]) continue;
    let top = side, left = side, bottom = 0, right = 0;
    const open = [first];
    inside[first] = 0;
    while (open.length) {
      const at = open.pop(), y = Math.floor(at / side), x = at % side;
      top = Math.min(top, y), bottom = Math.max(bottom, y + 1);
      left = Math.min(left, x), right = Math.max(right, x + 1);
      for (let i = Math.max(y - 1, 0); i <= Math.min(y + 1, side - 1); i++)
        for (let j = Math.max(x - 1, 0); j <= Math.min(x + 1, side - 1); j++)
          if (inside[i * side + j]) inside[i * side + j] = 0, open.push(i * side + j);
    }
    boxes.push([top, left, bottom, right]);
  }
  boxes.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  return boxes.map((box) => box.map((edge) => edge / side));
}

function overlap(map, truth, threshold) {
  // IoU of {s >= threshold} with the truth, as mean_iou is made of
  let both = 0, either = 0;
  map.forEach((s, i) => {
    const inside = s >= Math.fround(threshold);
    both += inside && truth[i], either += inside || truth[i];
  });
  return both / Math.max(either, 1);
}

function massInside(heat, [h, w], [ymin, xmin, ymax, xmax]) {
  // sum of the map's cells, each by the share of it that lies in the box
  const covered = (i, low, high) => Math.max(0, Math.min(i + 1, high) - Math.max(i, low));
  return heat.reduce((sum, value, at) => {
    const rows = covered(Math.floor(at / w), ymin * h, ymax * h);
    return rows ? sum + value * rows * covered(at % w, xmin * w, xmax * w) : sum;
  }, 0);
}
