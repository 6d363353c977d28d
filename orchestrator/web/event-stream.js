/**
 * A session's event stream: server-sent events by `fetch`, since `EventSource` sends no key.
 *
 * @module event-stream
 */

import { RETRIES, Tries, verdict } from "./retries.js";

/** A connection without a byte for so long is dead: the orchestrator sends a comment every 15 s. */
const SILENT_MS = 40_000;
const OVER = new Set(["stopped", "failed"]);

/**
 * The session's events from its beginning, until it is over or `signal` aborts. A connection that drops or is silent is opened again, as
 * the table of `retries.js` has it; no event is missed or comes twice.
 * @param {(last: number, signal: AbortSignal) => Promise<ReadableStream<Uint8Array>>} connect opens the stream after this event; throws `ApiError`
 * @param {AbortSignal} [signal]
 * @returns {AsyncGenerator<import("./avatar-client.js").SessionEvent, void, void>}
 * @throws {import("./avatar-client.js").ApiError} what `connect` threw last, when it is final or was tried for long enough
 */
export async function* sessionEvents(connect, signal) {
  const tries = new Tries(RETRIES.link);
  let last = 0;
  while (!signal?.aborted) {
    const connection = new AbortController();
    const abort = () => connection.abort();
    let silence = setTimeout(abort, SILENT_MS);
    signal?.addEventListener("abort", abort);
    let problem;
    try {
      const body = await connect(last, connection.signal);
      for await (const event of serverSentEvents(body, () => (clearTimeout(silence), (silence = setTimeout(abort, SILENT_MS))))) {
        tries.succeeded();
        last = event.id ?? last;
        yield event;
        if (event.type === "session.state" && OVER.has(event.data.state)) return;
      }
    } catch (error) {
      problem = /** @type {import("./avatar-client.js").ApiError} */ (error);
    } finally {
      clearTimeout(silence);
      signal?.removeEventListener("abort", abort);
      abort();
    }
    if (signal?.aborted) return;
    if (problem?.code && verdict(problem.status, problem.code) === "final") throw problem;
    const wait = tries.nextWaitMs(problem?.retryAfterS);
    if (wait === null && problem) throw problem;
    if (wait === null) return; // connections that end at once, again and again
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

/**
 * @param {ReadableStream<Uint8Array>} body
 * @param {() => void} onBytes is called with whatever arrives, comments too
 * @returns {AsyncGenerator<any>} the `data` of each event, as JSON has it
 */
async function* serverSentEvents(body, onBytes) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      onBytes();
      const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection is gone already
  }
}
