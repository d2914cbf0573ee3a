// The steps that are left to the app, with the arithmetic of edgedl's Python: float32, in the order written.
// A sample is { data, shape }: a typed array and its sizes, (height, width, channels) for an image.

import { asType, sizeOf, typeOf, zeros } from "./tensors.js";

const f32 = Math.fround;
const STEPS = { cast, resize, crop, grayscale, scale, normalize };

/** The sample after all steps of a manifest. Throws where a step does not fit, and names it. */
export function preprocess(steps, sample) {
  return steps.reduce((current, step, i) => {
    try {
      return STEPS[step.op](current, step);
    } catch (error) {
      throw new Error(`preprocess step ${i + 1} (${step.op}): ${error.message}`, { cause: error });
    }
  }, sample);
}

function cast({ data, shape }, { dtype }) {
  return { data: asType(data, dtype), shape };
}

function scale({ data, shape }, { factor, offset = 0 }) {
  const [by, plus] = [f32(factor), f32(offset)];
  return { data: Float32Array.from(data, (x) => f32(f32(x) * by) + plus), shape };
}

function normalize({ data, shape }, { mean, std }) {
  const channels = [mean, std].find(Array.isArray)?.length;
  if (channels && channels !== shape.at(-1)) throw new Error(`is for ${channels} channels, got shape [${shape}]`);
  const at = (values, i) => f32(Array.isArray(values) ? values[i % channels] : values);
  return { data: Float32Array.from(data, (x, i) => f32(f32(x) - at(mean, i)) / at(std, i)), shape };
}

function grayscale({ data, shape }) {
  if (shape.length !== 3 || shape[2] !== 3) throw new Error(`needs RGB images (height, width, 3), got [${shape}]`);
  const luma = new Float32Array(data.length / 3);
  for (let i = 0; i < luma.length; i++) {
    const [red, green, blue] = [data[3 * i], data[3 * i + 1], data[3 * i + 2]];
    luma[i] = f32(f32(f32(0.299) * f32(red)) + f32(f32(0.587) * f32(green))) + f32(f32(0.114) * f32(blue));
  }
  return { data: asType(luma, typeOf(data)), shape: [shape[0], shape[1], 1] };
}

function crop({ data, shape }, { height, width, top, left }) {
  const [rows, columns, channels] = image(shape);
  const y = top ?? Math.floor((rows - height) / 2);
  const x = left ?? Math.floor((columns - width) / 2);
  if (y < 0 || x < 0 || y + height > rows || x + width > columns) {
    throw new Error(`a box of ${height} x ${width} does not fit into an image of ${rows} x ${columns}`);
  }
  const found = data.slice(0, height * width * channels);
  for (let row = 0; row < height; row++) {
    const start = ((y + row) * columns + x) * channels;
    found.set(data.subarray(start, start + width * channels), row * width * channels);
  }
  return { data: found, shape: [height, width, ...shape.slice(2)] };
}

function resize({ data, shape }, { height, width, method = "bilinear" }) {
  const [rows, columns, channels] = image(shape);
  const found = { data, shape: [height, width, ...shape.slice(2)] };
  if (rows === height && columns === width) return found;
  const sampler = method === "nearest" ? nearest : bilinear;
  return { ...found, data: sampler(data, rows, columns, channels, height, width) };
}

function nearest(data, rows, columns, channels, height, width) {
  const places = (old, size) => {
    const ratio = f32(old / size);
    return Array.from({ length: size }, (_, i) => Math.floor(Math.min(f32((i + 0.5) * ratio), old - 1)));
  };
  const [ys, xs] = [places(rows, height), places(columns, width)];
  const found = zeros(typeOf(data), height * width * channels);
  let at = 0;
  for (const y of ys) {
    for (const x of xs) {
      for (let c = 0; c < channels; c++) found[at++] = data[(y * columns + x) * channels + c];
    }
  }
  return found;
}

function bilinear(data, rows, columns, channels, height, width) {
  const [ys, xs] = [neighbours(rows, height), neighbours(columns, width)];
  const found = new Float32Array(height * width * channels);
  let at = 0;
  for (const [top, bottom, down] of ys) {
    for (const [left, right, along] of xs) {
      for (let c = 0; c < channels; c++) {
        const mix = (row) => {
          const a = f32(data[(row * columns + left) * channels + c]);
          const b = f32(data[(row * columns + right) * channels + c]);
          return f32(a + f32(f32(b - a) * along));
        };
        const above = mix(top);
        found[at++] = above + f32(f32(mix(bottom) - above) * down);
      }
    }
  }
  return asType(found, typeOf(data));
}

// For each new pixel the two old ones and how far it lies between them.
function neighbours(old, size) {
  const ratio = f32(old / size);
  return Array.from({ length: size }, (_, i) => {
    const source = f32(f32((i + 0.5) * ratio) - 0.5);
    const below = Math.floor(source);
    return [Math.max(below, 0), Math.min(Math.ceil(source), old - 1), f32(source - below)];
  });
}

function image(shape) {
  if (shape.length !== 2 && shape.length !== 3) throw new Error(`needs images, got shape [${shape}]`);
  return [shape[0], shape[1], sizeOf(shape.slice(2))];
}

/** RGB pixels, uint8, of what a canvas gives (RGBA). */
export function rgbOf({ data, height, width }) {
  const found = zeros("uint8", height * width * 3);
  for (let i = 0, at = 0; i < data.length; i += 4) {
    for (let c = 0; c < 3; c++) found[at++] = data[i + c];
  }
  return { data: found, shape: [height, width, 3] };
}
