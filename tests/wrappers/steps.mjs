// Runs cases.json through the web wrapper's preprocessing; [file, folder of the modules] are the arguments.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [cases, folder] = process.argv.slice(2);
const { preprocess } = await import(pathToFileURL(`${folder}/preprocessing.js`));
const { asType, typeOf, zeros } = await import(pathToFileURL(`${folder}/tensors.js`));

const found = JSON.parse(readFileSync(cases)).map(({ steps, sample }) => {
  const data = zeros(sample.type, sample.data.length);
  data.set(sample.data);
  const after = preprocess(steps, { data, shape: sample.shape });
  return { data: Array.from(asType(after.data, typeOf(after.data))), shape: after.shape, type: typeOf(after.data) };
});
console.log(JSON.stringify(found));
