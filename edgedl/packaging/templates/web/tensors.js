// Numbers as edgedl's Python has them: float32 arithmetic, .npy files, quantization.

const TYPES = {
  uint8: Uint8Array,
  int8: Int8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  float32: Float32Array,
};
const NPY_TYPES = { u1: "uint8", i1: "int8", i2: "int16", u2: "uint16", i4: "int32", f4: "float32" };
const LIMITS = {
  uint8: [0, 255],
  int8: [-128, 127],
  int16: [-32768, 32767],
  uint16: [0, 65535],
  int32: [-2147483648, 2147483647],
};

/** The number of values of a shape. */
export function sizeOf(shape) {
  return shape.reduce((product, size) => product * size, 1);
}

/** The name of a typed array's type, such as "float32". */
export function typeOf(data) {
  if (data instanceof Uint8ClampedArray) return "uint8";
  const found = Object.keys(TYPES).find((name) => data instanceof TYPES[name]);
  if (!found) throw new TypeError(`a typed array of ${Object.keys(TYPES).join(", ")} is needed`);
  return found;
}

/** A typed array of zeros. */
export function zeros(type, size) {
  if (!(type in TYPES)) throw new TypeError(`no arrays of ${type} here`);
  return new TYPES[type](size);
}

/** The same numbers in another type; integers are rounded half up and saturate. */
export function asType(data, type) {
  if (typeOf(data) === type) return data;
  const found = zeros(type, data.length);
  if (type === "float32") {
    found.set(data);
    return found;
  }
  const [low, high] = LIMITS[type];
  const isFloat = typeOf(data) === "float32";
  for (let i = 0; i < data.length; i++) {
    const value = isFloat ? Math.floor(Math.fround(data[i] + 0.5)) : data[i];
    found[i] = Math.min(high, Math.max(low, value));
  }
  return found;
}

/** Real values as the integers of a tensor: round(value / scale) + zero_point, half to even, saturated. */
export function quantize(values, spec) {
  const scale = Math.fround(spec.scale[0]);
  const [low, high] = LIMITS[spec.dtype];
  const codes = zeros(spec.dtype, values.length);
  for (let i = 0; i < values.length; i++) {
    const code = Math.fround(roundHalfEven(Math.fround(values[i] / scale)) + spec.zero_point[0]);
    codes[i] = Math.min(high, Math.max(low, code));
  }
  return codes;
}

/** The real values, float32, of what a tensor stores. */
export function dequantize(codes, spec) {
  if (spec.scale.length === 0 || codes instanceof Float32Array) return Float32Array.from(codes);
  const scale = Math.fround(spec.scale[0]);
  return Float32Array.from(codes, (code) => Math.fround(code - spec.zero_point[0]) * scale);
}

function roundHalfEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}

/** A .npy file: { data, shape }. */
export function readNpy(buffer) {
  const view = new DataView(buffer);
  const wide = view.getUint8(6) > 1;
  const start = (wide ? 12 : 10) + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder().decode(new Uint8Array(buffer, 0, start));
  const type = NPY_TYPES[/'descr': '[<|=]?(\w+)'/.exec(header)?.[1] ?? ""];
  const shape = /'shape': \(([^)]*)\)/.exec(header)?.[1];
  if (!type || shape === undefined) throw new Error("a .npy file of a type that is not known here");
  return { data: new TYPES[type](buffer.slice(start)), shape: shape.split(",").filter((s) => s.trim()).map(Number) };
}
