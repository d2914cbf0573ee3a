// Written by edgedl: __NAME__ __VERSION__.

/** One sample before preprocessing: an image is (height, width, channels), values from row to row. */
export interface Sample {
  data: Uint8Array | Uint8ClampedArray | Int8Array | Int16Array | Uint16Array | Int32Array | Float32Array;
  shape: number[];
}

export type Accelerator = "wasm" | "webgpu";

export interface LoadOptions {
  /** What to run on; default: "wasm". Falls back to "wasm", and `fallback` says why. */
  accelerator?: Accelerator;
  /** The folder with the runtime's .wasm files, where they are served from elsewhere than node_modules. */
  wasm?: string;
}

export interface Scored {
  index: number;
  /** null where there is not one label a value. */
  label: string | null;
  value: number;
}

export interface SelfTestCheck {
  output: string;
  /** Steps of the output's scale, or the share of the largest golden value. */
  unit: "lsb" | "relative";
  measured: number;
  limit: number;
}

export interface SelfTest {
  passed: boolean;
  checks: SelfTestCheck[];
}
__TYPES__
export class __MODEL__ {
  /** Loads the model of this package. Throws where a file cannot be fetched or the runtime refuses it. */
  static load(options?: LoadOptions): Promise<__MODEL__>;

  /** Class names in the order of the output's values; empty where the package has none. */
  readonly labels: string[];
  /** What runs the model. */
  readonly accelerator: Accelerator;
  /** Why the accelerator asked for does not run it, else null. */
  readonly fallback: string | null;
  /** manifest.json of the package. */
  readonly manifest: Record<string, unknown>;

__PREDICT__

  /** The best labels of one output's values, best first. One value with two labels is the probability of the second. */
  top(values: Float32Array, count?: number): Scored[];

  /** Runs the golden inputs of the package here and compares with the golden outputs. */
  selfTest(): Promise<SelfTest>;

  /** Lets go of the runtime's memory. */
  close(): void;
}
