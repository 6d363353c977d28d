/**
 * The microphone as int16 mono PCM at 16 kHz. It is opened at first use, and released after a minute without use.
 *
 * @module microphone
 */

import { requestMicrophone } from "./avatar.js";

const RELEASE_AFTER_MS = 60_000;

/** Events: `pcm` (detail: Int16Array). */
export class Microphone extends EventTarget {
  /** @param {AudioContext} context */
  constructor(context) {
    super();
    this.context = context;
    /** @type {MediaStream|null} */
    this.stream = null;
    /** @type {AudioWorkletNode|null} */
    this.node = null;
    /** @type {Promise<void>|null} */
    this.opening = null;
    this.releaseTimer = 0;
    this.flushed = () => {};
  }

  get isOpen() {
    return this.node !== null;
  }

  /** Asks for the microphone; concurrent calls share one request. Throws `ApiError`, see `requestMicrophone`. */
  open() {
    this.opening ??= this.#open().finally(() => (this.opening = null));
    return this.opening;
  }

  begin() {
    clearTimeout(this.releaseTimer);
    this.node?.port.postMessage("begin");
  }

  /** Ends the recording; resolves after its last `pcm` event. @returns {Promise<void>} */
  end() {
    this.releaseTimer = setTimeout(() => this.close(), RELEASE_AFTER_MS);
    return new Promise((resolve) => {
      this.flushed = resolve;
      if (this.node) this.node.port.postMessage("end");
      else resolve();
    });
  }

  close() {
    clearTimeout(this.releaseTimer);
    this.flushed();
    this.node?.disconnect();
    this.node = null;
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
  }

  async #open() {
    if (this.isOpen) return;
    this.stream = await requestMicrophone();
    await this.context.audioWorklet.addModule(new URL("./pcm-worklet.js", import.meta.url));
    const node = new AudioWorkletNode(this.context, "pcm", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => {
      if (data === "end") this.flushed();
      else this.dispatchEvent(new CustomEvent("pcm", { detail: data }));
    };
    this.context.createMediaStreamSource(this.stream).connect(node);
    this.stream.getAudioTracks()[0].addEventListener("ended", () => this.close());
    this.node = node;
  }
}
