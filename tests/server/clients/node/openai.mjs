// openai-node as it is: URL, key, a data URL and the package are the arguments, what it saw is printed as JSON.
const [url, apiKey, image, name] = process.argv.slice(2);
const { default: OpenAI } = await import(name);

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey });
const model = "moondream/moondream3-preview";
const messages = [{ role: "user", content: "What is 2 + 2?" }];
const create = (fields) => client.chat.completions.create({ model, messages, ...fields });
const seen = {};

const whole = await create({});
seen.whole = { text: whole.choices[0].message.content, total: whole.usage.total_tokens };

const picture = [{ role: "user", content: [{ type: "image_url", image_url: { url: image } }, { type: "text", text: "What is this?" }] }];
seen.picture = (await create({ messages: picture })).choices[0].message.content;

const turns = [...messages, { role: "assistant", content: "4" }, { role: "user", content: "And 3 + 3?" }];
seen.turns = (await create({ messages: turns })).choices[0].message.content;

seen.chunks = "";
for await (const chunk of await create({ stream: true, stream_options: { include_usage: true } })) {
  seen.chunks += chunk.choices[0]?.delta?.content ?? "";
  seen.streamedTotal = chunk.usage?.total_tokens ?? seen.streamedTotal;
}

const runner = client.chat.completions.stream({ model, messages, n: 2, logprobs: true, stream_options: { include_usage: true } });
const final = await runner.finalChatCompletion();
seen.runner = final.choices.map((choice) => choice.message.content);
seen.runnerDeltas = "";
await client.chat.completions.stream({ model, messages }).on("content", (delta) => (seen.runnerDeltas += delta)).done();
seen.runnerLogprobs = final.choices.map((choice) => choice.logprobs.content.map((token) => token.token).join(""));
seen.runnerUsage = final.usage.total_tokens;

const thought = await create({ reasoning: true });
seen.reasoning = thought.choices[0].message.reasoning;
seen.effort = (await create({ reasoning_effort: "low" })).choices[0].message.reasoning;

const left = await create({ stream: true });
for await (const _ of left) {
  break; // aborts the request
}

seen.models = (await client.models.list()).data.map((found) => found.id);
const failure = async (promise) => {
  try {
    await promise;
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, param: error.param, id: error.requestID?.slice(0, 4) };
  }
};
seen.errors = [
  await failure(create({ model: "gpt-4o" })),
  await failure(create({ temperature: 3 })),
  await failure(create({ messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "https://a.example/x.png" } }] }] })),
  await failure(new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong" }).models.list()),
];
console.log(JSON.stringify(seen));
