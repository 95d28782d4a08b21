// Runs a workflow on a picture through comfy-worker: publish, follow, fetch.
//
//     node publish.mjs WORKFLOW.json NODE.INPUT PICTURE [--id ID] [--out DIR]
//
// The picture goes to S3, the job into the queue; progress is shown, outputs are fetched, Ctrl-C cancels.
// The same call is the same job: it is run once, however often it is published.
//
// Environment: AMQP_URL, INPUTS (s3://bucket/folder for pictures), RESULTS (the workers' store.uri), and the
// usual AWS_* variables.
// Exit codes: 0 done, 1 the job failed, 2 wrong call, 3 broker or store failed, 130 cancelled.

import { createHash, randomUUID } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { basename, extname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";

import { GetObjectCommand, PutObjectCommand, S3Client } from "@aws-sdk/client-s3";
import amqp from "amqplib";

const [QUEUE, EVENTS, CONTROL] = ["comfy.jobs", "comfy.events", "comfy.control"];
const TRIES = 8; // connections in a row that fail before this gives up
const CANCEL_EVERY = 5000; // milliseconds: an order that no worker heard is lost
const LOOK_EVERY = 2000; // milliseconds: once the line was cut, the answer may lie in the store alone

/** Trying again does not help. */
class Final extends Error {}

const note = (text) => console.error(text);
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

/** The first Ctrl-C asks for a cancel, the second one ends the program. */
const cancel = new AbortController();
process.once("SIGINT", () => cancel.abort());

function s3Client() {
  // Stores beside Amazon's have no host name for each bucket.
  const elsewhere = process.env.AWS_ENDPOINT_URL_S3 ?? process.env.AWS_ENDPOINT_URL;
  return new S3Client({ endpoint: elsewhere, forcePathStyle: Boolean(elsewhere) });
}

function split(uri) {
  const [, bucket, key] = /^s3:\/\/([^/]+)\/(.*)$/.exec(uri);
  return { Bucket: bucket, Key: key };
}

/** The body, the same bytes for the same call: only then it is the same job. */
async function makeJob(s3, { workflow, input, picture, id }) {
  const bytes = await readFile(picture);
  // Named by its content: it can be uploaded again, and never changes under a job.
  const source = `${process.env.INPUTS.replace(/\/$/, "")}/${sha256(bytes)}${extname(picture)}`;
  await s3.send(new PutObjectCommand({ ...split(source), Body: bytes }));
  const job = { version: 1, workflow: JSON.parse(await readFile(workflow)), inputs: { [input]: source } };
  job.id = id ?? `picture-${sha256(JSON.stringify(job)).slice(0, 32)}`;
  // What stays the same over lost connections.
  return {
    id: job.id,
    body: Buffer.from(JSON.stringify(job)),
    replies: `replies.${randomUUID()}`,
    correlationId: randomUUID(),
    confirmed: false, // The broker has it: publishing it again could only run it twice.
    failures: 0,
  };
}

/** The result's bytes, over lost connections. */
async function run(url, s3, letter) {
  for (;;) {
    let connection;
    try {
      connection = await amqp.connect(url);
      return await publishAndWait(connection, s3, letter);
    } catch (error) {
      letter.failures += 1;
      // 403 and 404: refused, whoever asks again.
      if (error instanceof Final || [403, 404].includes(error.code) || letter.failures === TRIES) throw error;
      note(`${error.message}: connecting again`);
      await sleep(Math.min(500 * 2 ** letter.failures, 30_000));
    } finally {
      await connection?.close().catch(() => {});
    }
  }
}

async function publishAndWait(connection, s3, letter) {
  const { id, body, replies, correlationId } = letter;
  const channel = await connection.createConfirmChannel();
  const lost = new Promise((_, reject) => {
    for (const part of [connection, channel]) {
      part.on("error", reject);
      part.on("close", () => reject(new Error("the connection was lost")));
    }
  });
  lost.catch(() => {}); // It is looked at below, or no more.

  // Listen first: events are not kept. The queue goes with the connection, and has its name again on the next.
  await channel.assertQueue(replies, { exclusive: true });
  await channel.bindQueue(replies, EVENTS, `job.${id}.*`);
  const result = Promise.withResolvers();
  await channel.consume(
    replies,
    (message) => {
      if (message === null) result.reject(new Error("the reply queue is gone"));
      else if (message.fields.exchange !== EVENTS) {
        if (message.properties.correlationId === correlationId) result.resolve(message.content);
      } else if (!message.fields.routingKey.endsWith(".preview")) show(JSON.parse(message.content)); // a preview is a picture
    },
    { noAck: true },
  );

  const wasCut = letter.confirmed;
  if (!letter.confirmed) {
    const properties = {
      contentType: "application/json",
      persistent: true,
      messageId: id,
      correlationId,
      replyTo: replies,
      timestamp: Math.floor(Date.now() / 1000),
      mandatory: true, // Without it a message that no queue takes is confirmed, and gone.
    };
    let returned = false;
    channel.once("return", () => (returned = true));
    const published = new Promise((resolve, reject) =>
      channel.publish("", QUEUE, body, properties, (error) => (error ? reject(error) : resolve())),
    );
    await Promise.race([published, lost]);
    if (returned) throw new Final(`there is no queue ${QUEUE}: has a worker ever run?`);
    letter.confirmed = true;
    note(`${id} is in the queue`);
  }
  letter.failures = 0;

  const order = () => {
    note("cancelling");
    channel.publish(CONTROL, "", Buffer.from(JSON.stringify({ cancel: id })));
  };
  let orders;
  const cancelling = () => {
    order();
    orders = setInterval(order, CANCEL_EVERY);
  };
  if (cancel.signal.aborted) cancelling();
  else cancel.signal.addEventListener("abort", cancelling);
  const look = () => storedResult(s3, id).then((stored) => stored && result.resolve(stored), result.reject);
  const looks = wasCut && setInterval(look, LOOK_EVERY);
  try {
    return await Promise.race([result.promise, lost]);
  } finally {
    cancel.signal.removeEventListener("abort", cancelling);
    clearInterval(orders);
    clearInterval(looks);
  }
}

/** What the worker sends is this object, byte for byte; nothing: the job is not over. */
async function storedResult(s3, id) {
  const object = split(`${process.env.RESULTS.replace(/\/$/, "")}/${id}/result.json`);
  try {
    return await (await s3.send(new GetObjectCommand(object))).Body.transformToString();
  } catch (error) {
    if (error.name === "NoSuchKey") return undefined;
    throw error;
  }
}

function show(event) {
  const progress = event.event === "progress" ? ` ${Math.round(event.fraction * 100)}% ${event.title}` : "";
  note(`  ${event.event}${progress}`);
}

/** Stores each output as a file and prints its name. */
async function fetchOutputs(s3, result, folder) {
  await mkdir(folder, { recursive: true });
  for (const output of result.outputs) {
    // Nodes may use the same name; a text has none.
    const path = join(folder, `${output.node}-${output.index}-${basename(output.filename ?? "text.txt")}`);
    if (output.uri === undefined) {
      await writeFile(path, output.text);
    } else {
      const object = await s3.send(new GetObjectCommand(split(output.uri)));
      const bytes = await object.Body.transformToByteArray();
      if (sha256(bytes) !== output.sha256) throw new Error(`${output.uri} is not what the result says`);
      await writeFile(path, bytes);
    }
    console.log(path);
  }
}

async function main() {
  const usage = "usage: node publish.mjs WORKFLOW.json NODE.INPUT PICTURE [--id ID] [--out DIR], with INPUTS and RESULTS set";
  let parsed;
  try {
    parsed = parseArgs({ allowPositionals: true, options: { id: { type: "string" }, out: { type: "string", default: "." } } });
  } catch (error) {
    note(error.message);
  }
  if (parsed?.positionals.length !== 3 || ![process.env.INPUTS, process.env.RESULTS].every((uri) => uri?.startsWith("s3://"))) {
    note(usage);
    return 2;
  }
  const [workflow, input, picture] = parsed.positionals;
  const s3 = s3Client();
  const job = await makeJob(s3, { workflow, input, picture, id: parsed.values.id });
  const result = JSON.parse(await run(process.env.AMQP_URL ?? "amqp://localhost", s3, job));
  if (result.status === "succeeded") {
    await fetchOutputs(s3, result, parsed.values.out);
    return 0;
  }
  if (result.status === "cancelled") {
    note("cancelled");
    return 130;
  }
  note(`failed: ${result.error.code} in ${result.error.stage}: ${result.error.message}`);
  return 1;
}

process.exitCode = await main().catch((error) => {
  note(`${error.name}: ${error.message}`);
  return 3;
});
