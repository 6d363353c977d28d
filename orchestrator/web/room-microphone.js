/**
 * The user's microphone as a track of a LiveKit room. It is asked for at `open`, and given back at `close`.
 *
 * @module room-microphone
 */

import { ApiError } from "./avatar-client.js";
import { LocalAudioTrack } from "./vendor/livekit-client.esm.js";

/** @typedef {import("./vendor/livekit-client.esm.js").Room} Room */
/** @typedef {"off" | "on" | "muted"} MicrophoneState */

/** Code and sentence by the error of `getUserMedia`. @type {Record<string, [string, string]>} */
const PROBLEMS = {
  NotAllowedError: ["microphone_forbidden", "The browser may not use the microphone. Allow it in the address bar, then try again."],
  NotFoundError: ["microphone_missing", "No microphone was found. Plug one in, then try again."],
  NotReadableError: ["microphone_busy", "The microphone is in use by another program."],
};

/**
 * Asks for the microphone, with echo cancellation, noise suppression and automatic gain.
 * @returns {Promise<MediaStream>}
 * @throws {ApiError} `microphone_forbidden`, `microphone_missing`, `microphone_busy`, `microphone_insecure`, `microphone_failed`
 */
export async function requestMicrophone() {
  if (!navigator.mediaDevices) {
    throw new ApiError("Browsers give the microphone to pages on https or localhost only. Open this page that way.", { code: "microphone_insecure" });
  }
  const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    const { name } = /** @type {DOMException} */ (error);
    const [code, message] = PROBLEMS[name] ?? ["microphone_failed", `The microphone could not be opened (${name}).`];
    throw new ApiError(message, { code });
  }
}

/**
 * Events: `state` (detail: `MicrophoneState`), `error` (detail: `ApiError`: the device was taken away, `microphone_lost`, or the room
 * does not take the track, `microphone_refused`).
 */
export class RoomMicrophone extends EventTarget {
  #room;
  /** @type {Promise<void> | null} */
  #opening = null;
  /** Raised by every `close`: what an earlier `open` still brings is given back. */
  #generation = 0;
  #muted = false;
  /** @type {import("./vendor/livekit-client.esm.js").LocalPublication | null} */
  #publication = null;
  #publishing = false;

  /** @param {Room} room may be connected later: `publish` is called then */
  constructor(room) {
    super();
    this.#room = room;
    /** For a level meter; null while it is off. @type {MediaStreamTrack | null} */
    this.track = null;
  }

  /** @returns {MicrophoneState} */
  get state() {
    return this.track === null ? "off" : this.#muted ? "muted" : "on";
  }

  /** While it is muted the room hears silence; the device stays open. It may be set before `open`. */
  get muted() {
    return this.#muted;
  }

  set muted(muted) {
    if (muted === this.#muted) return;
    this.#muted = muted;
    if (!this.track) return;
    this.track.enabled = !muted; // at once; the room learns it a moment later
    void this.#muteInRoom();
    this.#emit("state", this.state);
  }

  /**
   * Asks for the microphone, and publishes it now or once the room is joined. Without effect while it is open; concurrent calls share one request.
   * @returns {Promise<void>}
   * @throws {ApiError} see `requestMicrophone`; `cancelled` when it was closed meanwhile
   */
  open() {
    this.#opening ??= this.#open().finally(() => (this.#opening = null));
    return this.#opening;
  }

  /** Gives the microphone back. Idempotent. */
  close() {
    this.#generation += 1;
    const { track } = this;
    if (!track) return;
    this.track = null;
    track.stop();
    if (this.#publication && this.#room.state === "connected") this.#room.localParticipant.unpublishTrack(track).catch(() => {}); // the room ends
    this.#publication = null;
    this.#emit("state", "off");
  }

  async #open() {
    if (this.track) return;
    const generation = this.#generation;
    const stream = await requestMicrophone();
    const [track] = stream.getAudioTracks();
    if (generation !== this.#generation) {
      track.stop();
      throw new ApiError("The microphone was closed before it was open.", { code: "cancelled" });
    }
    track.enabled = !this.#muted;
    track.addEventListener("ended", () => this.#lost(track));
    this.track = track;
    this.#emit("state", this.state);
    await this.publish();
  }

  /** Publishes what is open, where the room is connected. `Avatar` calls it. */
  async publish() {
    const { track } = this;
    if (!track || this.#publication || this.#publishing || this.#room.state !== "connected") return;
    this.#publishing = true;
    try {
      const local = new LocalAudioTrack(track, undefined, true);
      await local.mute(); // else its constructor enables the track a moment later
      if (!this.#muted) await local.unmute();
      track.enabled = !this.#muted; // it may have changed meanwhile
      const publication = await this.#room.localParticipant.publishTrack(local, { source: "microphone", name: "microphone" });
      if (this.track !== track) {
        await this.#room.localParticipant.unpublishTrack(track); // closed meanwhile
        return;
      }
      this.#publication = publication;
      await this.#muteInRoom();
    } catch (error) {
      if (this.track !== track) return;
      this.close();
      const { message } = /** @type {Error} */ (error);
      this.#emit("error", new ApiError(`The room does not take the microphone: ${message}`, { code: "microphone_refused" }));
    } finally {
      this.#publishing = false;
      if (this.track !== track) void this.publish(); // opened anew meanwhile
    }
  }

  /** LiveKit enables a track when it connects anew, unless it knows that the track is muted. */
  async #muteInRoom() {
    await (this.#muted ? this.#publication?.mute() : this.#publication?.unmute());
  }

  /** @param {MediaStreamTrack} track */
  #lost(track) {
    if (track !== this.track) return;
    this.close();
    this.#emit("error", new ApiError("The microphone was unplugged or taken away. Plug it in, then try again.", { code: "microphone_lost" }));
  }

  /** @param {string} type @param {unknown} detail */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
