// A packaged model: its manifest, one engine that runs it, and its golden inputs and outputs.

import { open } from "./engine.js";
import { preprocess, rgbOf } from "./preprocessing.js";
import { dequantize, quantize, readNpy, sizeOf, typeOf } from "./tensors.js";

export class Model {
  constructor(manifest, engine, files) {
    this.manifest = manifest;
    this.engine = engine;
    this.files = files;
  }

  /** The model of a package whose `files` are URLs by name. Throws where a file is missing or the engine refuses it. */
  static async load(files, options = {}) {
    const manifest = JSON.parse(new TextDecoder().decode(await fetched(files, "manifest.json")));
    const bytes = new Uint8Array(await fetched(files, manifest.artifact.file));
    return new this(manifest, await open(bytes, manifest, options), files);
  }

  /** The class names, in the order of the output's values; none where the package has none. */
  get labels() {
    return this.manifest.labels;
  }

  /** What runs the model: "wasm" or "webgpu". */
  get accelerator() {
    return this.engine.accelerator;
  }

  /** Why the accelerator asked for is not the one that runs, else null. */
  get fallback() {
    return this.engine.fallback;
  }

  /** Outputs by name for samples by name, after the preprocessing that is left to the app. */
  async run(samples) {
    const fed = {};
    for (const spec of this.manifest.inputs) {
      if (samples[spec.name] == null) throw new Error(`input "${spec.name}" is missing`);
      const sample = preprocess(this.manifest.preprocessing, sampleOf(samples[spec.name], spec));
      fed[spec.name] = this.fed(spec, sample.data, sample.shape);
    }
    return this.infer(fed);
  }

  /** The `count` best labels of one output's values, best first: { index, label, value }. */
  top(values, count = 1) {
    const isBinary = this.labels.length === 2 && values.length === 1;
    const scores = isBinary ? Float32Array.of(1 - values[0], values[0]) : values;
    const labels = this.labels.length === scores.length ? this.labels : [];
    const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a]);
    return order.slice(0, count).map((index) => ({ index, label: labels[index] ?? null, value: scores[index] }));
  }

  /** Runs the golden inputs of the package and compares: { passed, checks: [{ output, unit, measured, limit }] }. */
  async selfTest() {
    const { golden, inputs, outputs } = this.manifest;
    const load = (side) => this.golden(golden[side]);
    const [given, expected] = [await load("inputs"), await load("outputs")];
    const worst = Object.fromEntries(outputs.map((spec) => [spec.name, 0]));
    for (let i = 0; i < golden.samples; i++) {
      const fed = Object.fromEntries(inputs.map((s) => [s.name, this.fed(s, given[s.name][i], s.shape.slice(1))]));
      const found = await this.infer(fed);
      for (const spec of outputs) {
        const unit = golden.tolerance[spec.name].unit;
        const off = difference(found[spec.name], expected[spec.name][i], unit, spec, largest(expected[spec.name]));
        worst[spec.name] = Math.max(worst[spec.name], off);
      }
    }
    const checks = outputs.map(({ name }) => {
      const { unit, value: limit } = golden.tolerance[name];
      return { output: name, unit, measured: worst[name], limit };
    });
    return { passed: checks.every((check) => check.measured <= check.limit), checks };
  }

  /** Lets go of the engine's memory. */
  close() {
    this.engine.close();
  }

  async golden(named) {
    const found = {};
    for (const [name, file] of Object.entries(named)) {
      const { data, shape } = readNpy(await fetched(this.files, file));
      const size = sizeOf(shape.slice(1));
      found[name] = Array.from({ length: shape[0] }, (_, i) => data.subarray(i * size, (i + 1) * size));
    }
    return found;
  }

  fed(spec, data, shape) {
    const wanted = spec.shape.slice(1);
    if (shape.length !== wanted.length || shape.some((size, i) => size !== wanted[i])) {
      throw new Error(`input "${spec.name}" takes samples of shape [${wanted}], got [${shape}]`);
    }
    const isReal = spec.scale.length > 0 && this.manifest.embedded.length === 0;
    if (isReal) return quantize(data, spec);
    const type = typeOf(data);
    if (type === spec.dtype) return data;
    if (spec.dtype === "float32") return Float32Array.from(data);
    throw new Error(`input "${spec.name}" takes ${spec.dtype}, got ${type}`);
  }

  async infer(fed) {
    const raw = await this.engine.run(fed);
    return Object.fromEntries(this.manifest.outputs.map((spec) => [spec.name, dequantize(raw[spec.name], spec)]));
  }
}

async function fetched(files, name) {
  const url = files[name];
  if (!url) throw new Error(`the package has no file "${name}"`);
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
}

function sampleOf(given, spec) {
  if (ArrayBuffer.isView(given)) return { data: given, shape: spec.shape.slice(1) };
  if (typeof ImageData !== "undefined" && given instanceof ImageData) return rgbOf(given);
  if (given.data.length !== sizeOf(given.shape)) {
    throw new Error(`input "${spec.name}": shape [${given.shape}] does not hold ${given.data.length} values`);
  }
  return given;
}

function largest(samples) {
  return samples.reduce((most, sample) => sample.reduce((m, x) => Math.max(m, Math.abs(x)), most), 0);
}

function difference(found, expected, unit, spec, range) {
  if (found.length !== expected.length || !found.every(Number.isFinite)) return Infinity;
  const off = expected.reduce((most, value, i) => Math.max(most, Math.abs(value - found[i])), 0);
  return unit === "lsb" ? Math.round(off / (spec.scale[0] ?? 1)) : off / Math.max(range, 1.1754943508222875e-38);
}
