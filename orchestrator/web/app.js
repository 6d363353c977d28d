/**
 * The page: its phases (`ready` → `starting` → `live` → `ready`), buttons and keys. It is built on `avatar.js`, as any other page can be.
 *
 * @module app
 */

import { Avatar, AvatarClient } from "./avatar.js";
import { Chooser } from "./chooser.js";
import { Credentials, askForKey } from "./credentials.js";
import { $, setText } from "./elements.js";
import { Panel } from "./panel.js";
import { described } from "./problem-view.js";
import { Recording } from "./recording.js";
import { SessionView } from "./session-view.js";
import { explained, language, switchLanguage, t, translatePage } from "./strings.js";

/** What the avatar says first in Talk, so that one who is new knows it hears. In English, as the conversation that the page starts is. */
const GREETING = "Hello! What would you like to talk about?";
const STOP_WHEN_HIDDEN_MS = 5 * 60_000;
const NARROW = matchMedia("(max-width: 899px)");
const TOUCH = matchMedia("(pointer: coarse)");
const OVER = new Set(["stopped", "failed"]);
/** Errors of a session that is over, which the status line reports. */
const SESSION_OVER = new Set(["session_not_found", "session_ended", "room_left"]);

const credentials = new Credentials((refused) => askForKey($("key-dialog"), refused));
const token = (/** @type {boolean} */ refused) => credentials.find(refused);
const client = new AvatarClient({ token });
const recording = new Recording({ client, showError: showThrown });
const panel = new Panel();
const chooser = new Chooser({ client, panel, showStatus, showError: showThrown, loadVoices });

/** @typedef {"talk" | "say"} Mode */

/** The session of now. */
const page = {
  /** @type {Avatar | null} */
  avatar: null,
  /** @type {SessionView | null} */
  view: null,
  /** `talk`: it listens and answers. `say`: it speaks the user's words. @type {Mode} */
  mode: "talk",
  /** @type {AudioContext | null} */
  context: null,
  hiddenTimer: 0,
};

/** @param {string} text */
function showStatus(text) {
  setText($("status"), text);
}

/** @param {string} message @param {string} code */
function showError(message, code) {
  setText($("problem-text"), message);
  setText($("problem-code"), code);
  $("problem").hidden = false;
}

const hideError = () => ($("problem").hidden = true);

/** @param {unknown} error */
function showThrown(error) {
  const { message, code } = described(error);
  showError(message, code);
}

/** @param {"ready" | "starting" | "live"} phase */
function enter(phase) {
  document.body.dataset.phase = phase;
  $("cover").classList.toggle("away", phase === "live");
  $("cover").inert = phase === "live";
  $("cover-text").hidden = phase !== "starting";
  $("chip").hidden = phase !== "live";
  $("captions-toggle").hidden = phase !== "live";
  $("chooser").hidden = phase === "live";
  $("chooser").inert = phase !== "ready";
  $("language").hidden = phase !== "ready"; // texts of a session stay as they were written
  $("controls").hidden = phase !== "live";
  if (phase !== "live") $("unblock").hidden = true;
  $("start-talk").hidden = phase === "starting";
  $("start-help").hidden = phase === "starting";
  setText($("start"), t(phase === "starting" ? "start.cancel" : "start.say"));
}

/** @param {Mode} mode whose controls are shown */
function choose(mode) {
  page.mode = mode;
  document.body.dataset.mode = mode;
  for (const id of ["speak-form", "hold", "say-help"]) $(id).hidden = mode !== "say";
  for (const id of ["chat-form", "mic", "push-choice"]) $(id).hidden = mode !== "talk";
  $("push").hidden = true;
  setText($("switch"), t(mode === "talk" ? "mode.say" : "mode.talk"));
  placeConversation();
}

/** Beside the video where there is room, else below it. */
function placeConversation() {
  if (NARROW.matches) $("controls").before($("conversation"));
  else $("panel").before($("conversation"));
}

/** Progress of a start: under the stage, and on it. @param {string} text */
function showProgress(text) {
  showStatus(text);
  setText($("cover-text"), text);
}

/** @param {Mode} mode */
async function start(mode) {
  hideError();
  choose(mode);
  const talks = mode === "talk";
  // Both must happen in the click, or the browser blocks the audio later.
  page.context ??= new AudioContext();
  void page.context.resume();
  const avatar = new Avatar({ video: $("video"), audio: $("audio"), token });
  avatar.startAudio();
  const view = new SessionView({ avatar, panel, context: page.context, talks, showStatus, showError });
  page.avatar = avatar;
  page.view = view;
  avatar.on("started", () => showProgress(t("status.joining")));
  avatar.on("firstframe", () => enterLive(avatar));
  try {
    enter("starting");
    panel.reset();
    const request = chooser.request();
    showProgress(t("status.preparing"));
    view.startedAt = performance.now();
    if (talks) void openMicrophone(avatar);
    await avatar.start(talks ? { ...request, conversation: { greeting: GREETING } } : request);
  } catch (error) {
    if (page.avatar !== avatar) return;
    await finish(t("status.not_started"));
    showThrown(error);
    return;
  }
  if (page.avatar !== avatar) return;
  if (document.body.dataset.phase === "starting") showProgress(t("status.first_frame"));
  let ending = t("status.ended");
  avatar.on("error", ({ code, message }) => {
    if (code === "room_left") ending = explained(code, message);
    if (!SESSION_OVER.has(code)) showError(explained(code, message), code);
  });
  avatar.on("state", ({ state }) => {
    if (OVER.has(state) && page.avatar === avatar) void finish(ending);
  });
}

/** Asks for the microphone while the avatar is prepared. Without it the conversation goes on in writing. @param {Avatar} avatar */
async function openMicrophone(avatar) {
  try {
    await avatar.microphone.open();
  } catch (error) {
    if (page.avatar === avatar) showThrown(error);
  }
}

/** @param {Avatar} avatar whose first frame is shown */
function enterLive(avatar) {
  if (page.avatar !== avatar) return;
  enter("live");
  if (avatar.session) recording.open(avatar.session.session_id);
  chooser.attach(avatar);
  showStatus(t(invitation()));
  const field = page.mode === "talk" ? $("chat-text") : $("text");
  if (!TOUCH.matches) field.focus({ preventScroll: true }); // on a phone it would open the keyboard over the avatar
  if (page.mode === "say") void loadVoices($("voice"));
}

const invitation = () => (page.mode === "talk" ? "status.talking" : "status.invitation");

/** The other mode, in a session of its own. */
async function switchMode() {
  const mode = page.mode === "talk" ? "say" : "talk";
  await finish(t("status.stopped"));
  await start(mode);
}

/** Ends the session of now and offers to start again. @param {string} sentence */
async function finish(sentence) {
  const { avatar, view } = page;
  if (!avatar) return;
  page.avatar = null;
  page.view = null;
  enter("ready");
  chooser.attach(null);
  showStatus(t("status.again", { sentence }));
  $(page.mode === "talk" ? "start-talk" : "start").focus({ preventScroll: true });
  view?.close();
  await avatar.stop().catch(() => {}); // else it ends by itself, without a viewer
  await recording.close();
}

/** Fills a list of voices, by provider; without it the default voice speaks. @param {HTMLSelectElement} list */
async function loadVoices(list) {
  if (list.querySelector("optgroup")) return;
  const { voices } = await client.voices().catch(() => ({ voices: [] }));
  const languages = new Intl.DisplayNames(language(), { type: "language", fallback: "code" });
  /** @type {Map<string, HTMLOptGroupElement>} */
  const groups = new Map();
  for (const { name, language, provider } of voices) {
    const group = groups.get(provider) ?? Object.assign(document.createElement("optgroup"), { label: provider });
    groups.set(provider, group);
    const voice = name.replace(`${provider}:`, "");
    const label = languageName(languages, language);
    group.append(new Option(voice === language ? label : `${voice}, ${label}`, name));
  }
  if (!list.querySelector("optgroup")) list.append(...groups.values());
}

/** @param {Intl.DisplayNames} names @param {string} tag which the browser may not know */
function languageName(names, tag) {
  try {
    return names.of(tag) ?? tag;
  } catch {
    return tag;
  }
}

async function speak() {
  const text = $("text").value.trim();
  if (!text || !page.view) return;
  hideError();
  try {
    await page.view.speak(text, $("voice").value);
    $("text").value = "";
    showStatus(t(invitation()));
  } catch (error) {
    showThrown(error);
  }
}

async function send() {
  const text = $("chat-text").value.trim();
  const { avatar } = page;
  if (!text || !avatar) return;
  hideError();
  $("chat-text").value = ""; // the next one can be typed at once
  try {
    await avatar.send(text);
  } catch (error) {
    if (!$("chat-text").value) $("chat-text").value = text;
    showThrown(error);
  }
}

async function interrupt() {
  if (document.body.dataset.phase !== "live" || !page.view) return;
  try {
    const dropped = await page.view.interrupt();
    showStatus(dropped ? t("status.interrupted_rest", { seconds: dropped.toFixed(1) }) : t("status.interrupted"));
  } catch (error) {
    showThrown(error);
  }
}

/** Only before a start: afterwards the button is hidden. */
function changeLanguage() {
  switchLanguage();
  hideError();
  panel.reset();
  showStatus(t("status.meet"));
  choose(page.mode);
  chooser.translate();
  for (const old of document.querySelectorAll("select optgroup")) old.remove(); // languages of voices are named in the page's own
}

/** The page is being left: the session must not outlive it. */
function leave() {
  if (!page.avatar) return;
  page.avatar.stopOnLeave();
  void finish(t("status.left"));
}

/** A tab in the background still counts as watched for a while. */
function visibilityChanged() {
  clearTimeout(page.hiddenTimer);
  if (!document.hidden) return;
  page.view?.say?.release();
  page.view?.talk?.release();
  page.hiddenTimer = setTimeout(() => void finish(t("status.hidden")), STOP_WHEN_HIDDEN_MS);
}

function listen() {
  $("start").addEventListener("click", () => void (page.avatar ? finish(t("status.cancelled")) : start("say")));
  $("start-talk").addEventListener("click", () => void start("talk"));
  $("switch").addEventListener("click", () => void switchMode());
  $("stop").addEventListener("click", () => void finish(t("status.stopped")));
  $("interrupt").addEventListener("click", () => void interrupt());
  $("problem-close").addEventListener("click", hideError);
  $("language").addEventListener("click", changeLanguage);
  $("unblock").addEventListener("click", () => {
    void page.context?.resume();
    page.avatar?.startAudio();
  });
  $("speak-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    void speak();
  });
  $("chat-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    void send();
  });
  $("text").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    void speak();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) void interrupt();
  });
  document.addEventListener("visibilitychange", visibilityChanged);
  window.addEventListener("pagehide", leave);
}

if (NARROW.matches) $("panel").open = false;
NARROW.addEventListener("change", placeConversation);
translatePage();
choose("talk");
enter("ready");
listen();
void credentials.known().then((known) => {
  if (known) return chooser.gallery.load();
  $("load-avatars").hidden = false;
});
