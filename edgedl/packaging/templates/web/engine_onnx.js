// onnxruntime-web runs the .onnx file.

const BACKENDS = {
  wasm: () => import("onnxruntime-web/wasm"),
  webgpu: () => import("onnxruntime-web/webgpu"),
};

/** The engine for these bytes: { accelerator, fallback, run, close }. */
export async function open(bytes, manifest, { accelerator = "wasm", wasm } = {}) {
  if (!(accelerator in BACKENDS)) throw new Error(`accelerator is wasm or webgpu, got "${accelerator}"`);
  const start = async (on) => {
    const ort = await BACKENDS[on]();
    if (wasm) ort.env.wasm.wasmPaths = wasm;
    const session = await ort.InferenceSession.create(bytes, { executionProviders: [on] });
    return { ort, session };
  };
  let [used, fallback] = [accelerator, null];
  const { ort, session } = await start(accelerator).catch((error) => {
    if (accelerator === "wasm") throw error;
    [used, fallback] = ["wasm", String(error.message ?? error)];
    return start("wasm");
  });
  return {
    accelerator: used,
    fallback,
    run: (fed) => run(ort, session, manifest, fed),
    close: () => session.release(),
  };
}

async function run(ort, session, manifest, fed) {
  const tensors = manifest.inputs.map((spec) => [
    spec.name,
    new ort.Tensor(spec.dtype, fed[spec.name], [1, ...spec.shape.slice(1)]),
  ]);
  const found = await session.run(Object.fromEntries(tensors));
  return Object.fromEntries(manifest.outputs.map((spec) => [spec.name, found[spec.name].data]));
}
