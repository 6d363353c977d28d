/**
 * Errors of the orchestrator's HTTP surface.
 *
 * @module api-error
 */

import { retryAfterS } from "./retries.js";

/** An answer that is not 2xx (its problem+json), or no answer at all (`code` is then `network`, or `cancelled`). */
export class ApiError extends Error {
  /**
   * @param {string} message one sentence for the user
   * @param {{code: string, status?: number, field?: string, retryAfterS?: number}} problem
   */
  constructor(message, { code, status = 0, field, retryAfterS }) {
    super(message);
    this.name = "ApiError";
    this.code = code;
    this.status = status;
    this.field = field;
    this.retryAfterS = retryAfterS;
  }
}

/**
 * The error of an answer that is not 2xx.
 * @param {number} status
 * @param {string} text the answer's body
 * @param {string|null} retryAfter value of its `Retry-After` header
 */
export function problem(status, text, retryAfter) {
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    body = null;
  }
  const message = body?.detail || body?.title || `The server answered ${status}.`;
  return new ApiError(typeof message === "string" ? message : JSON.stringify(message), {
    code: body?.code || `http_${status}`,
    status,
    field: body?.field,
    retryAfterS: retryAfterS(retryAfter),
  });
}

/** No answer came. */
export const unreachable = () =>
  new ApiError("The server cannot be reached. Check that it is running and that you are online.", { code: "network" });

/** The caller gave it up. */
export const cancelled = () => new ApiError("The call was cancelled.", { code: "cancelled" });
