// The AI SDK with its provider for compatible servers: URL, key and a data URL are the arguments; prints JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const [url, apiKey, image] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "mdinfer", baseURL: `${url}/v1`, apiKey, includeUsage: true });
const model = provider("moondream/moondream3-preview");
const seen = {};

const whole = await generateText({ model, prompt: "What is 2 + 2?" });
seen.whole = { text: whole.text, finish: whole.finishReason, total: whole.usage.totalTokens };

const content = [{ type: "image", image }, { type: "text", text: "What is this?" }];
seen.picture = (await generateText({ model, messages: [{ role: "user", content }] })).text;

const stream = streamText({ model, prompt: "What is 2 + 2?" });
seen.stream = "";
for await (const delta of stream.textStream) seen.stream += delta;
seen.streamFinish = await stream.finishReason;
seen.streamTotal = (await stream.usage).totalTokens;

const providerOptions = { mdinfer: { reasoningEffort: "low" } };
seen.reasoning = (await generateText({ model, prompt: "How many apples?", providerOptions })).reasoningText;
const thinking = streamText({ model, prompt: "How many apples?", providerOptions });
await thinking.consumeStream();
seen.streamedReasoning = await thinking.reasoningText;

try {
  await generateText({ model: provider("gpt-4o"), prompt: "?" });
} catch (error) {
  seen.error = { status: error.statusCode, message: error.message };
}
console.log(JSON.stringify(seen));
