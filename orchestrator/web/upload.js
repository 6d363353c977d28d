/**
 * A file as the body of one request, with progress.
 *
 * @module upload
 */

import { cancelled, problem, unreachable } from "./api-error.js";

/**
 * Sends a file. XMLHttpRequest reports an upload's progress; `fetch` does not.
 * @param {string} url
 * @param {string} token
 * @param {Blob} file
 * @param {{method?: "POST" | "PUT", name?: string, signal?: AbortSignal, onProgress?: (fraction: number) => void}} options `name` is the file's: what comes of it is named by it
 * @returns {Promise<any>} the answer's JSON
 */
export function uploadOnce(url, token, file, { method = "POST", name, signal, onProgress }) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(cancelled());
    const request = new XMLHttpRequest();
    const abort = () => request.abort();
    request.open(method, url);
    request.setRequestHeader("Authorization", `Bearer ${token}`);
    request.setRequestHeader("Content-Type", file.type || "application/octet-stream");
    if (name) request.setRequestHeader("X-Filename", headerName(name));
    request.upload.onprogress = (event) => event.lengthComputable && onProgress?.(event.loaded / event.total);
    request.onabort = () => reject(cancelled());
    request.onerror = () => reject(unreachable());
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) resolve(JSON.parse(request.responseText));
      else reject(problem(request.status, request.responseText, request.getResponseHeader("Retry-After")));
    };
    request.onloadend = () => signal?.removeEventListener("abort", abort);
    signal?.addEventListener("abort", abort);
    request.send(file);
  });
}

const HEADER_CHARACTERS = 256;

/** A name as a header takes it: percent-encoded, cut at a whole character. @param {string} name */
function headerName(name) {
  const whole = name.replace(/\p{Surrogate}/gu, ""); // halves of pairs have no encoding
  const dot = whole.lastIndexOf(".");
  const end = dot > 0 && whole.length - dot <= 8 ? encodeURIComponent(whole.slice(dot)) : "";
  let head = "";
  for (const character of end ? whole.slice(0, dot) : whole) {
    const next = encodeURIComponent(character);
    if (head.length + next.length + end.length > HEADER_CHARACTERS) break;
    head += next;
  }
  return head + end;
}
