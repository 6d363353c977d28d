/**
 * `<talking-avatar>`: a face on any site, in one tag. The visitor clicks it, and it listens and answers.
 *
 *     <script type="module" src="https://avatars.example/talking-avatar.js"></script>
 *     <talking-avatar src="https://avatars.example" token="mtp_…" talk text></talking-avatar>
 *
 * Attributes, each with a property of the same name (`token-url` is `tokenUrl`):
 * `src` origin of the orchestrator, by default that of this module; `token` a public token (`POST /public-tokens`), or `token-url` an address
 * of your own site that answers `{"token": "mtp_…"}` at each start; `avatar` one of the token's avatars; `poster` an image shown before the
 * start; `talk` shows the microphone's button, `text` the text field; `captions="off"` hides captions; `muted` plays no audio.
 *
 * Styling: `::part(stage | video | canvas | poster | start | stop | talk | mute | button | controls | status | captions | error | form | input | send)`, the
 * attribute `state`, and the custom properties `--ta-ratio`, `--ta-accent`, `--ta-panel`, `--ta-radius`.
 *
 * @module talking-avatar
 */

import { ApiError, Avatar } from "./avatar.js";
import { ATTRIBUTES, ReflectedAttributes } from "./embed-attributes.js";
import { sentence, textsFor } from "./embed-texts.js";
import { EmbedView } from "./embed-view.js";

export { ApiError };

/**
 * @typedef {"idle" | "starting" | "ready" | "speaking" | "recovering" | "ended" | "failed"} TalkingAvatarState
 * @typedef {"starting" | "listening" | "thinking" | "speaking" | "away"} Activity what the conversation does; null without one
 *
 * @typedef {{
 *   "ready": {session_id: string, conversation: boolean},
 *   "state": {state: TalkingAvatarState, activity: Activity | null, reason: string | null},
 *   "transcript": {id: string, text: string, final: boolean, typed: boolean},
 *   "reply": {id: string, text: string, final: boolean, interrupted: boolean},
 *   "error": {code: string, message: string},
 *   "ended": {reason: string},
 * }} TalkingAvatarEvents The element's events and their `detail`. They do not bubble. `transcript`: the visitor's words, `reply`: the avatar's,
 *     each with every word that comes. `error`: `code` is stable, `message` is for developers. `ended`: a session that was `ready` is over; `reason` is `stopped`, `minutes_exhausted`,
 *     `expired`, `no_viewers`, `idle`, …
 */

const OVER = new Set(["stopped", "failed"]);
const RESTARTS = new Set(["src", "avatar"]);
const noToken = () => new ApiError("Give the element a public token: token, token-url or getToken.", { code: "no_token" });
/** The element. A removed one ends its session and gives everything back; one that is moved within the document goes on. */
export class TalkingAvatar extends ReflectedAttributes {
  static observedAttributes = [...ATTRIBUTES, "lang"];

  /**
   * Gives the token for a start, in place of `token` and `token-url`.
   * @type {(() => string | Promise<string>) | null}
   */
  getToken = null;
  /** Texts in place of the element's own, by their key in `embed-texts.js`. @type {import("./embed-texts.js").Texts} */
  texts = {};
  #view;
  #audio = new Audio();
  /** The avatar of the session that starts or runs. @type {Avatar | null} */
  #avatar = null;
  /** @type {Promise<void> | null} */
  #starting = null;
  /** @type {TalkingAvatarState} */
  #state = "idle";
  /** @type {Activity | null} */
  #activity = null;
  #reason = "";
  #blocked = false;
  #restarting = false;
  #pageLeft = () => this.#avatar?.stopOnLeave();

  constructor() {
    super();
    this.#view = new EmbedView(this.attachShadow({ mode: "open", delegatesFocus: true }));
    const { start, stop, talk, sound, form, input } = this.#view;
    start.addEventListener("click", () => void this.start().catch(() => {})); // it is shown
    stop.addEventListener("click", () => void this.stop());
    talk.addEventListener("click", () => void (this.listening ? this.closeMicrophone() : this.openMicrophone().catch(() => {})));
    sound.addEventListener("click", () => this.#toggleSound());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = input.value.trim();
      if (!text) return;
      input.value = "";
      void this.chat(text).catch(() => (input.value ||= text));
    });
  }

  // --- state and methods

  /** @returns {TalkingAvatarState} */
  get state() {
    return this.#state;
  }

  /** What the conversation does; null without one. @returns {Activity | null} */
  get activity() {
    return this.#activity;
  }

  /** Whether the microphone is open. */
  get listening() {
    return this.#avatar !== null && this.#avatar.microphone.state !== "off";
  }

  /**
   * Starts the session; without effect while one starts or runs. Call it in a click, or the browser blocks the audio.
   * @returns {Promise<void>} when the avatar is in its room
   * @throws {ApiError} which is shown and dispatched too; `cancelled` when it was stopped meanwhile
   */
  start() {
    if (this.#avatar && !this.#starting) return Promise.resolve();
    this.#starting ??= this.#start().finally(() => (this.#starting = null));
    return this.#starting;
  }

  /** Ends the session. Idempotent. */
  async stop() {
    const avatar = this.#avatar;
    if (!avatar) return;
    this.#end(avatar, "stopped");
    await avatar.stop().catch(() => {}); // else it ends without a viewer
  }

  /**
   * Sends the visitor's text; the avatar answers by voice.
   * @param {string} text
   * @throws {ApiError}
   */
  async chat(text) {
    const avatar = this.#running();
    try {
      await avatar.send(text);
      if (avatar === this.#avatar) this.#view.showProblem("");
    } catch (error) {
      this.#report(error);
      throw error;
    }
  }

  /**
   * Opens the microphone, for which the browser asks the visitor.
   * @throws {ApiError}
   */
  async openMicrophone() {
    const avatar = this.#running();
    try {
      await avatar.microphone.open();
      if (avatar === this.#avatar) this.#view.showProblem("");
    } catch (error) {
      if (/** @type {ApiError} */ (error).code !== "cancelled") this.#report(error);
      throw error;
    }
  }

  /** Gives the microphone back. */
  closeMicrophone() {
    this.#avatar?.microphone.close();
  }

  /**
   * Typed `addEventListener`.
   * @template {keyof TalkingAvatarEvents} Name
   * @param {Name} name
   * @param {(detail: TalkingAvatarEvents[Name]) => void} listener
   * @returns {this}
   */
  on(name, listener) {
    this.addEventListener(name, (event) => listener(/** @type {CustomEvent} */ (event).detail));
    return this;
  }

  // --- called by the browser

  connectedCallback() {
    globalThis.addEventListener("pagehide", this.#pageLeft);
    this.#view.label(this.#texts());
    this.#view.showPoster(this.#posterAddress());
    this.#show();
    this.#view.video.play().catch(() => {}); // one that was moved has paused
  }

  disconnectedCallback() {
    queueMicrotask(() => {
      if (this.isConnected) return; // it was moved
      globalThis.removeEventListener("pagehide", this.#pageLeft);
      void this.stop();
    });
  }

  /** @param {string} name @param {string | null} before @param {string | null} now */
  attributeChangedCallback(name, before, now) {
    if (before === now || !this.isConnected) return;
    if (name === "poster" || name === "avatar") this.#view.showPoster(this.#state === "idle" ? this.#posterAddress() : "");
    if (name === "lang") this.#view.label(this.#texts());
    if (name === "captions" && !this.captions) this.#view.showCaption("");
    if (RESTARTS.has(name) && this.#avatar) void this.#restart();
    this.#show();
  }

  // --- inside

  async #start() {
    const baseUrl = this.src || new URL(import.meta.url).origin;
    /** @type {Promise<string> | null} */
    let held = null;
    // A session belongs to the token that started it: another one is asked for only while there is none.
    const token = (/** @type {boolean} */ refused) => (refused && !avatar.session && this.#findsTokens ? (held = this.#findToken()) : (held ??= this.#findToken()));
    const avatar = new Avatar({ video: this.#view.video, canvas: this.#view.canvas, audio: this.#audio, baseUrl, token });
    this.#avatar = avatar;
    this.#reason = "";
    this.#activity = null;
    this.#blocked = false;
    this.#view.clear();
    this.#listen(avatar);
    this.#applyMuted();
    this.#setState("starting");
    try {
      if (!this.token && !this.#findsTokens) throw noToken(); // the call would ask for one again and again
      await avatar.startPublic(this.avatar ? { avatar_id: this.avatar } : {});
    } catch (error) {
      if (avatar === this.#avatar) this.#fail(avatar, error);
      throw error;
    }
  }

  /** Ends what runs and starts anew, once for all attributes that change together. */
  async #restart() {
    if (this.#restarting) return;
    this.#restarting = true;
    await Promise.resolve();
    const starting = this.#starting;
    await this.stop();
    await starting?.catch(() => {});
    this.#restarting = false;
    if (this.isConnected) await this.start().catch(() => {}); // it is shown
  }

  get #findsTokens() {
    return Boolean(this.getToken || (this.tokenUrl && !this.token));
  }

  /** @returns {Promise<string>} */
  async #findToken() {
    const token = this.getToken ? await this.getToken() : this.token || (await this.#askForToken());
    if (!token) throw noToken();
    return token;
  }

  async #askForToken() {
    if (!this.tokenUrl) return "";
    try {
      const answer = await fetch(new URL(this.tokenUrl, this.baseURI), { cache: "no-store" });
      if (!answer.ok) throw new ApiError(`${this.tokenUrl} answered ${answer.status}.`, { code: "no_token", status: answer.status });
      return (await answer.json()).token;
    } catch (error) {
      if (error instanceof ApiError) throw error;
      throw new ApiError(`${this.tokenUrl} gave no token: ${/** @type {Error} */ (error).message}`, { code: "no_token" });
    }
  }

  /** @param {Avatar} avatar */
  #listen(avatar) {
    /** What comes late from an earlier session is not shown. @type {typeof avatar.on} */
    const on = (name, listener) => avatar.on(name, (detail) => avatar === this.#avatar && listener(detail));
    on("state", ({ state, reason }) => this.#sessionState(avatar, state, reason ?? ""));
    on("firstframe", () => this.#view.showPoster(""));
    on("alpha", (transparent) => this.#view.showTransparent(transparent));
    on("conversation.state", (activity) => {
      this.#activity = activity;
      this.#announce();
    });
    on("message", (message) => this.#message(message));
    on("caption", ({ text, final }) => {
      if (avatar.conversation) return;
      this.#caption(text);
      if (final) this.#view.note(this.#texts().avatar, text);
    });
    on("microphone", () => this.#show());
    on("audioblocked", (blocked) => {
      this.#blocked = blocked;
      this.#show();
    });
    on("error", (problem) => this.#report(problem));
    on("warning", (problem) => problem.code === "conversation_provider" && this.#report(problem));
  }

  /** @param {Avatar} avatar @param {import("./avatar.js").AvatarState} state @param {string} reason */
  #sessionState(avatar, state, reason) {
    if (OVER.has(state)) {
      if (this.#state === "starting") return; // `start` throws it
      this.#end(avatar, reason || this.#reason || state, state === "failed" ? "failed" : "ended");
    } else if (state === "draining") {
      this.#reason = reason;
    } else if (state === "ready" || state === "speaking" || state === "recovering") {
      const first = this.#state === "starting";
      this.#setState(state);
      const { session } = avatar;
      if (first && session) this.#dispatch("ready", { session_id: session.session_id, conversation: Boolean(session.conversation) });
    }
  }

  /** @param {import("./conversation.js").Message} message */
  #message({ id, role, text, final, interrupted, typed }) {
    const texts = this.#texts();
    const ofUser = role === "user";
    this.#caption(ofUser ? `${texts.you}: ${text}` : text);
    if (final) this.#view.note(ofUser ? texts.you : texts.avatar, text);
    if (ofUser) return this.#dispatch("transcript", { id, text, final, typed });
    this.#view.showProblem(""); // it answers
    this.#dispatch("reply", { id, text, final, interrupted });
  }

  /** @param {string} text */
  #caption(text) {
    if (this.captions) this.#view.showCaption(text);
  }

  /** The start has failed. @param {Avatar} avatar @param {unknown} error */
  #fail(avatar, error) {
    const { code = "other" } = /** @type {Partial<ApiError>} */ (error);
    if (code === "cancelled") return this.#end(avatar, "stopped");
    this.#end(avatar, code, "failed");
    this.#report(error);
  }

  /** @param {unknown} error shows and dispatches it */
  #report(error) {
    const { code = "other", message = error instanceof Error ? String(error) : code } = /** @type {Partial<ApiError>} */ (error);
    this.#view.showProblem(sentence("error", code, this.#texts()) ?? "");
    this.#dispatch("error", { code, message });
  }

  /** The session is over for this element. @param {Avatar} avatar @param {string} reason @param {TalkingAvatarState} [state] */
  #end(avatar, reason, state = "ended") {
    if (avatar !== this.#avatar) return;
    const ran = this.#state !== "starting";
    this.#avatar = null;
    void avatar.leave();
    this.#activity = null;
    this.#reason = reason;
    this.#view.showCaption("");
    this.#view.showTransparent(false);
    this.#view.showPoster(this.#posterAddress());
    this.#setState(state);
    const words = sentence(state === "failed" ? "error" : "ended", reason, this.#texts());
    if (words) this.#view.showProblem(words);
    if (ran) this.#dispatch("ended", { reason });
  }

  #toggleSound() {
    if (this.#blocked) {
      this.#avatar?.startAudio();
      this.muted = false;
    } else {
      this.muted = !this.muted;
    }
  }

  #applyMuted() {
    this.#audio.muted = this.muted;
    if (this.#avatar) this.#avatar.viewer.elements.standbyAudio.muted = this.muted;
  }

  /** @param {TalkingAvatarState} state */
  #setState(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.setAttribute("state", state);
    this.#announce();
  }

  #announce() {
    this.#show();
    this.#dispatch("state", { state: this.#state, activity: this.#activity, reason: this.#reason || null });
  }

  #show() {
    this.#applyMuted();
    const running = this.#state === "ready" || this.#state === "speaking" || this.#state === "recovering";
    this.#view.show(
      {
        running,
        starting: this.#state === "starting",
        hears: Boolean(this.#avatar?.conversation),
        talks: this.talk,
        writes: this.text,
        muted: this.muted || this.#blocked,
        microphone: this.listening,
        status: running ? this.#status() : "",
      },
      this.#texts(),
    );
  }

  #status() {
    const texts = this.#texts();
    if (this.#state === "recovering" || this.#activity === "away") return texts.recovering;
    if (this.#activity === "thinking") return texts.thinking;
    return this.#activity === "listening" && this.listening ? texts.listening : "";
  }

  #posterAddress() {
    if (this.poster || this.avatar !== "demo") return this.poster;
    return this.src ? new URL("/poster.jpg", this.src).href : "";
  }

  #texts() {
    const language = this.closest("[lang]")?.getAttribute("lang") || navigator.language;
    return { ...textsFor(language), ...this.texts };
  }

  #running() {
    if (!this.#avatar || this.#state === "starting") throw new ApiError("Start the avatar first.", { code: "session_not_found" });
    return this.#avatar;
  }

  /**
   * @template {keyof TalkingAvatarEvents} Name
   * @param {Name} name
   * @param {TalkingAvatarEvents[Name]} detail
   */
  #dispatch(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

if (globalThis.customElements && !customElements.get("talking-avatar")) customElements.define("talking-avatar", TalkingAvatar);
