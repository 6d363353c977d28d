/**
 * Which answers are retried, with which waits, and for how long: the table of `musetalk_agent/protocol/retries.py`. A test compares the
 * two, so `RETRIES` is written as JSON.
 *
 * `later`: the call was not carried out and may succeed later. `unknown`: it may have been carried out, so only an idempotent call is
 * retried. `final`: it would be refused again.
 *
 * @module retries
 */

/** @typedef {"later" | "unknown" | "final"} Verdict */
/** @typedef {{first_s: number, factor: number, longest_s: number, total_s: number}} Schedule Seconds; see `Tries`. */

/** @type {{statuses: Record<string, Verdict>, codes: Record<string, Verdict>, closes: Record<string, Verdict>, link: Schedule, call: Schedule, silence_s: number, spread: number}} */
export const RETRIES = {
  "statuses": {
    "0": "unknown", "408": "later", "409": "later", "421": "later", "425": "later", "429": "later",
    "500": "unknown", "502": "unknown", "503": "later", "504": "unknown"
  },
  "codes": {
    "session_ended": "final", "idempotency_conflict": "final", "speech_elsewhere": "final", "publisher_unavailable": "final",
    "engine_unavailable": "final", "voice_unavailable": "final", "conversation_unavailable": "final",
    "renders_unavailable": "final", "avatar_in_use": "final",
    "idle_timeout": "later"
  },
  "closes": {
    "1000": "final", "1001": "final", "1002": "final", "1003": "final", "1007": "final", "1008": "final", "1009": "final", "1010": "final"
  },
  "link": { "first_s": 0.1, "factor": 2.0, "longest_s": 5.0, "total_s": 120.0 },
  "call": { "first_s": 0.25, "factor": 2.0, "longest_s": 5.0, "total_s": 30.0 },
  "silence_s": 10.0,
  "spread": 0.2
};

/** @param {number} status of an HTTP answer; 0 without an answer @param {string} [code] the problem's own @returns {Verdict} */
export const verdict = (status, code = "") => RETRIES.codes[code] ?? RETRIES.statuses[status] ?? "final";

/** @param {number} close a WebSocket's close code @param {string} [code] of the `error` message before it @returns {Verdict} */
export const closeVerdict = (close, code = "") => RETRIES.codes[code] ?? RETRIES.closes[close] ?? "later";

/** Seconds of a `Retry-After` header: a number, or a date. @param {string | null} value @returns {number | undefined} */
export function retryAfterS(value) {
  if (value === null || value.trim() === "") return undefined;
  const seconds = /^\d{1,9}$/.test(value.trim()) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : undefined;
}

/** Exponential back-off of one call, with jitter. */
export class Tries {
  /** @param {Schedule} schedule */
  constructor(schedule) {
    this.schedule = schedule;
    this.wait_s = schedule.first_s;
    /** `performance.now()` at which the schedule ends. @type {number | null} */
    this.until = null;
  }

  /** Starts the schedule over. */
  succeeded() {
    this.wait_s = this.schedule.first_s;
    this.until = null;
  }

  /**
   * The wait before the next attempt, in ms; at least the answer's `Retry-After`.
   * @param {number} [askedS]
   * @returns {number | null} null when the schedule ends before that
   */
  nextWaitMs(askedS = 0) {
    const now = performance.now();
    this.until ??= now + 1000 * this.schedule.total_s;
    const wait = 1000 * Math.max(this.wait_s, askedS) * (1 + RETRIES.spread * Math.random());
    if (now + 1000 * askedS >= this.until) return null;
    this.wait_s = Math.min(this.schedule.longest_s, this.wait_s * this.schedule.factor);
    return Math.min(wait, this.until - now);
  }
}
