// moondream-node with `endpoint`: URL, key and an image file are the arguments, what it saw is printed as JSON.
import { readFileSync } from "node:fs";
import { vl } from "moondream";

const [url, apiKey, path] = process.argv.slice(2);
const image = readFileSync(path);
const model = new vl({ endpoint: `${url}/v1`, apiKey });
const joined = async (stream) => {
  let text = "";
  for await (const chunk of stream) text += chunk;
  return text;
};
const seen = {
  caption: (await model.caption({ image, length: "short" })).caption,
  captionStream: await joined((await model.caption({ image, stream: true })).caption),
  query: (await model.query({ image, question: "What is this?" })).answer,
  queryStream: await joined((await model.query({ image, question: "What is this?", stream: true })).answer),
  queryAlone: (await model.query({ question: "What is 2 + 2?" })).answer,
  reasoning: (await model.query({ image, question: "What is this?", reasoning: true })).reasoning,
  objects: (await model.detect({ image, object: "cup" })).objects,
  points: (await model.point({ image, object: "cup" })).points,
};
console.log(JSON.stringify(seen));
