// LiteRT.js runs the .tflite file.

import { getGlobalLiteRtPromise, loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";

const WASM = new URL("../@litertjs/core/wasm/", import.meta.url).href; // beside this package in node_modules

/** The engine for these bytes: { accelerator, fallback, run, close }. */
export async function open(bytes, manifest, { accelerator = "wasm", wasm = WASM } = {}) {
  await (getGlobalLiteRtPromise() ?? loadLiteRt(wasm));
  let [used, fallback] = [accelerator, null];
  const compile = (on) => loadAndCompile(bytes, { accelerator: on });
  const compiled = await compile(accelerator).catch((error) => {
    if (accelerator === "wasm") throw error;
    [used, fallback] = ["wasm", String(error.message ?? error)];
    return compile("wasm");
  });
  return {
    accelerator: used,
    fallback,
    run: (fed) => run(compiled, manifest, fed),
    close: () => compiled.delete(),
  };
}

async function run(compiled, manifest, fed) {
  const tensors = inOrder(manifest.inputs, compiled.getInputDetails()).map(
    (spec) => new Tensor(fed[spec.name], [1, ...spec.shape.slice(1)]),
  );
  const found = await compiled.run(tensors);
  tensors.forEach((tensor) => tensor.delete());
  const specs = inOrder(manifest.outputs, compiled.getOutputDetails());
  const outputs = {};
  for (const [i, spec] of specs.entries()) {
    outputs[spec.name] = (await found[i].data()).slice();
    found[i].delete();
  }
  return outputs;
}

// The manifest's tensors in the order of the file; one that has no signature names them otherwise, in the same order.
function inOrder(specs, details) {
  const byName = details.map((detail) => specs.find((spec) => spec.name === detail.name));
  return byName.every(Boolean) ? byName : specs;
}
