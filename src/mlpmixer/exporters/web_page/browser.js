// --- back end in the browser: the page runs the model in MODEL with onnxruntime-web; no image leaves it ---

// Fit and resize as in Pillow's src/libImaging/Resample.c: bilinear, antialiased, across and then down (Pillow does tall images the other way
// round, which may differ by one level), with integer weights, rounded after each axis.
const ONE = 2 ** 22, HALF = 2 ** 21, STRIP_PX = 2 ** 22, GREY = 128;

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

function nearest(x) {  // as Python rounds: halves to the even number
  const r = Math.round(x);
  return r - x === 0.5 && r % 2 ? r - 1 : r;
}

function placed(w, h) {  // by the model's rule: the part of an image (left, top, right, bottom), and where it goes (left, top, width, height)
  const {fit, image_size: [H, W]} = MODEL;
  let box = [0, 0, w, h], at = [0, 0, W, H];
  if (fit === "crop") {
    const scale = Math.max(W / w, H / h), dx = Math.max(w - W / scale, 0) / 2, dy = Math.max(h - H / scale, 0) / 2;
    box = [dx, dy, w - dx, h - dy];
  } else if (fit === "pad") {
    const scale = Math.min(W / w, H / h), iw = clamp(nearest(w * scale), 1, W), ih = clamp(nearest(h * scale), 1, H);
    at = [Math.floor((W - iw) / 2), Math.floor((H - ih) / 2), iw, ih];
  }
  return [box.map(Math.fround), at];
}

function weights(old, from, to, size) {  // for each of `size` new pixels: the first old one, and the weights from there on
  const scale = Math.fround(to - from) / size, wide = Math.max(scale, 1);
  return Array.from({length: size}, (_, i) => {
    const centre = from + (i + 0.5) * scale, first = Math.max(Math.trunc(centre - wide + 0.5), 0);
    const end = Math.min(Math.trunc(centre + wide + 0.5), old);
    const row = Array.from({length: end - first}, (_, j) => Math.max(1 - Math.abs(first + j - centre + 0.5) / wide, 0)), sum = row.reduce((a, b) => a + b);
    return [first, Int32Array.from(row, v => Math.round(v / sum * ONE))];
  });
}

function fitted(bitmap) {  // -> H x W x C bytes, preprocessed as in training; the image is read in strips, so that any phone has the memory
  const {width: w, height: h} = bitmap, {image_size: [H, W], in_channels: C} = MODEL, [[x0, y0, x1, y1], [left, top, iw, ih]] = placed(w, h);
  const across = weights(w, x0, x1, iw), down = weights(h, y0, y1, ih);
  const first = down[0][0], end = down[ih - 1][0] + down[ih - 1][1].length, step = clamp(Math.floor(STRIP_PX / w), 1, end - first);
  const canvas = document.createElement("canvas"), narrow = new Uint8Array((end - first) * iw * C);
  canvas.width = w;
  canvas.height = step;
  const paint = canvas.getContext("2d", {willReadFrequently: true});
  paint.fillStyle = "#fff";
  for (let y = first; y < end; y += step) {
    paint.fillRect(0, 0, w, step);  // transparency is drawn on white
    paint.drawImage(bitmap, 0, -y);
    const count = Math.min(step, end - y), rgba = paint.getImageData(0, 0, w, count).data;
    if (rgba[3] !== 255) throw new Error(`${w} x ${h} px is too large for this browser.`);
    if (C === 1) for (let i = 0; i < rgba.length; i += 4) rgba[i] = 19595 * rgba[i] + 38470 * rgba[i + 1] + 7471 * rgba[i + 2] + 32768 >> 16;
    for (let r = 0, to = (y - first) * iw * C; r < count; r++) for (const [start, row] of across) for (let c = 0; c < C; c++) {
      let sum = 0;
      for (let j = 0, i = 4 * (r * w + start) + c; j < row.length; j++, i += 4) sum += row[j] * rgba[i];
      narrow[to++] = sum + HALF >> 22;
    }
  }
  const pixels = new Uint8Array(H * W * C).fill(GREY);
  down.forEach(([start, column], y) => {
    for (let x = 0, to = ((top + y) * W + left) * C; x < iw * C; x++) {
      let sum = 0;
      for (let j = 0, i = (start - first) * iw * C + x; j < column.length; j++, i += iw * C) sum += column[j] * narrow[i];
      pixels[to++] = sum + HALF >> 22;
    }
  });
  return pixels;
}

async function pixelsOf(blob) {
  let bitmap;
  try { bitmap = await createImageBitmap(blob, {imageOrientation: "from-image", colorSpaceConversion: "none"}); }
  catch {
    const heic = /^ftyp(hei|hev|mif1|msf1)/.test(await blob.slice(4, 12).text());
    throw new Error(heic ? "This is a HEIC photo, which this browser cannot read: convert it to JPEG." : "This browser cannot read the file as an image.");
  }
  try { return fitted(bitmap); } finally { bitmap.close(); }
}

function requireTrueCanvas() {  // against fingerprinting, some browsers change what a page reads from a canvas, and answers would be wrong
  const canvas = document.createElement("canvas"), paint = canvas.getContext("2d", {willReadFrequently: true});
  const wanted = Uint8ClampedArray.from({length: 4096}, (_, i) => i % 4 === 3 ? 255 : 37 * i);
  canvas.width = canvas.height = 32;
  paint.putImageData(new ImageData(wanted, 32, 32), 0, 0);
  if (paint.getImageData(0, 0, 32, 32).data.some((v, i) => v !== wanted[i]))
    throw new Error("This browser changes the pixels that a page reads (fingerprinting protection), so the answers would be wrong. Allow this page to read canvas data.");
}

function png(pixels) {  // -> a data: address
  const {image_size: [H, W], in_channels: C} = MODEL, canvas = document.createElement("canvas"), picture = new ImageData(W, H);
  for (let i = 0; i < W * H; i++) for (let c = 0; c < 4; c++) picture.data[4 * i + c] = c === 3 ? 255 : pixels[i * C + (C === 1 ? 0 : c)];
  canvas.width = W;
  canvas.height = H;
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas.toDataURL();
}

async function file(name) {  // only the one that this page was made with
  let answer;
  try { answer = await fetch(name, {integrity: MODEL.files[name], cache: "no-cache"}); }
  catch { throw new Error(`${name} cannot be loaded, or is not the file that this page was made with.`); }
  if (!answer.ok) throw new Error(`${name} cannot be loaded: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
}

let runtime = null, session = null;

async function run(pixels, ...outputs) {  // outputs of the graph for one image
  const {image_size: [H, W], in_channels: C} = MODEL, batch = MODEL.batch || 1, images = new Uint8Array(batch * pixels.length);
  images.set(pixels);
  const said = await session.run({images: new runtime.Tensor("uint8", images, [batch, H, W, C])}, outputs);
  return outputs.map(name => said[name].data.subarray(0, said[name].size / batch));
}

const backEnd = {
  computed: "in the network",
  foot: ["Computed on this device; no image leaves it. Runs on onnxruntime-web, ",
    Object.assign(element("a", "its licence"), {href: "onnxruntime-web/LICENSE"}), "."],
  async open() {
    if (location.protocol === "file:") throw new Error("A page opened as a file cannot load the network. In its folder, run " +
      "\"python -m http.server --bind 127.0.0.1\", then open http://127.0.0.1:8000/");
    requireTrueCanvas();
    $("about").textContent = `Loading ${(MODEL.num_bytes / 1e6).toFixed(1)} MB: the network and its runtime.`;
    const [ort, wasm, model] = await Promise.all([import("./onnxruntime-web/ort.js"), file("onnxruntime-web/ort.wasm"), file("model.onnx")]);
    runtime = ort;
    Object.assign(ort.env.wasm, {wasmBinary: wasm, numThreads: 1});  // more threads need headers that few static servers send
    session = await ort.InferenceSession.create(new Uint8Array(model), {executionProviders: ["wasm"]});
    const [h, w] = MODEL.image_size;
    await run(new Uint8Array(h * w * MODEL.in_channels), "probabilities");  // the first run takes longer
    return {...MODEL, max_bytes: Infinity, max_images: Infinity};
  },
  async predict(blob, most) {
    const pixels = await pixelsOf(blob), start = performance.now(), [p] = await run(pixels, "probabilities"), time_ms = performance.now() - start;
    const ranked = [...p.keys()].sort((a, b) => p[b] - p[a]), predicted = MODEL.threshold === null ? 0 : ranked.filter(k => p[k] >= MODEL.threshold).length;
    const top = ranked.slice(0, Math.max(most, predicted)).map(k => ({label: MODEL.classes[k], probability: p[k]}));
    return {top, labels: MODEL.threshold === null ? undefined : top.slice(0, predicted).map(({label}) => label), time_ms};
  },
  async evidence(blob, label) {
    const pixels = await pixelsOf(blob), [logits, own] = await run(pixels, "logits", "evidence");
    const k = MODEL.classes.indexOf(label), K = logits.length, [rows, columns] = MODEL.grid;
    const evidence = Array.from({length: rows}, (_, y) => Array.from({length: columns}, (_, x) => own[(y * columns + x) * K + k]));
    return {logit: logits[k], bias: logits[k] - evidence.flat().reduce((a, b) => a + b), evidence, seen: png(pixels)};
  },
};
