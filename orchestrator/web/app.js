/**
 * The page: phases (`ready` → `starting` → `live` → `ready`), buttons and keys.
 *
 * @module app
 */

import { ApiError, AvatarClient } from "./avatar-client.js";
import { Chooser } from "./chooser.js";
import { Credentials, askForKey } from "./credentials.js";
import { $, setText } from "./elements.js";
import { Panel } from "./panel.js";
import { SessionView } from "./session-view.js";

const STOP_WHEN_HIDDEN_MS = 5 * 60_000;
const NARROW = matchMedia("(max-width: 899px)");
const INVITATION = "Type something, or hold the button and talk.";
const TOUCH = matchMedia("(pointer: coarse)");

const credentials = new Credentials((refused) => askForKey($("key-dialog"), refused));
const client = new AvatarClient({ token: (refused) => credentials.find(refused) });
const chooser = new Chooser();
const panel = new Panel();

/** What runs now. */
const page = {
  /** @type {SessionView | null} */
  view: null,
  /** @type {AudioContext | null} */
  context: null,
  hiddenTimer: 0,
  /** Ends a start that is under way. @type {AbortController | null} */
  starting: null,
};

/** @param {string} text */
const tell = (text) => setText($("status"), text);

/** @param {string} message @param {string} code */
function fail(message, code) {
  setText($("problem-text"), message);
  setText($("problem-code"), code);
  $("problem").hidden = false;
}

const forgive = () => ($("problem").hidden = true);

/** @param {unknown} error */
function failWith(error) {
  if (!(error instanceof ApiError)) {
    fail(error instanceof Error ? error.message : String(error), "page");
    return;
  }
  if (error.field === "url" || error.field === "file") $(error.field).focus();
  fail(error.retryAfterS ? `${error.message} Try again in ${error.retryAfterS} s.` : error.message, error.code);
}

/** @param {"ready" | "starting" | "live"} phase */
function enter(phase) {
  document.body.dataset.phase = phase;
  $("cover").classList.toggle("away", phase === "live");
  $("cover").inert = phase === "live";
  $("cover-text").hidden = phase !== "starting";
  $("chip").hidden = phase !== "live";
  $("chooser").hidden = phase === "live";
  $("chooser").inert = phase !== "ready";
  $("controls").hidden = phase !== "live";
  if (phase !== "live") $("unblock").hidden = true;
  setText($("start"), phase === "starting" ? "Cancel" : "Start");
}

/** Progress while starting: under the stage, and on it. @param {string} text */
function progress(text) {
  tell(text);
  setText($("cover-text"), text);
}

async function start() {
  forgive();
  // Both must happen inside the click, or the browser holds the sound back later.
  page.context ??= new AudioContext();
  void page.context.resume();
  const view = new SessionView({ client, panel, context: page.context, tell, fail });
  page.view = view;
  view.viewer.allowSound();
  view.addEventListener("ended", (event) => void finish(/** @type {CustomEvent<string>} */ (event).detail));
  view.addEventListener("picture", live);
  try {
    enter("starting");
    panel.reset();
    const request = await chooser.request(client, progress);
    if (view.over) return;
    progress("Preparing the avatar …");
    view.startedAt = performance.now();
    page.starting = new AbortController();
    const session = await client.start(request, { signal: page.starting.signal });
    page.starting = null;
    if (view.over) {
      await client.stop(session.session_id); // it was cancelled meanwhile
      return;
    }
    progress("Joining the room …");
    await view.open(session);
    if (!view.over) progress("Waiting for the first picture …");
  } catch (error) {
    if (view.over) return;
    await finish("It did not start.");
    failWith(error);
  }
}

function live() {
  if (document.body.dataset.phase === "live" || page.view?.over) return;
  enter("live");
  tell(INVITATION);
  if (!TOUCH.matches) $("text").focus({ preventScroll: true }); // on a phone it would open the keyboard over the avatar
  void loadVoices();
}

/** Ends what runs and offers to start again. @param {string} sentence */
async function finish(sentence) {
  const { view } = page;
  if (!view) return;
  page.view = null;
  view.over = true;
  enter("ready");
  tell(`${sentence} Press Start to begin again.`);
  $("start").focus({ preventScroll: true });
  await view.close();
  if (view.session) await client.stop(view.session.session_id).catch(() => {});
}

/** Fills the list of voices, by provider; without it the default voice speaks. */
async function loadVoices() {
  if ($("voice").options.length > 1) return;
  const { voices } = await client.voices().catch(() => ({ voices: [] }));
  const languages = new Intl.DisplayNames("en", { type: "language", fallback: "code" });
  /** @type {Map<string, HTMLOptGroupElement>} */
  const groups = new Map();
  for (const { name, language, provider } of voices) {
    const group = groups.get(provider) ?? Object.assign(document.createElement("optgroup"), { label: provider });
    groups.set(provider, group);
    const called = name.replace(`${provider}:`, "");
    const spoken = languageName(languages, language);
    group.append(new Option(called === language ? spoken : `${called}, ${spoken}`, name));
  }
  $("voice").append(...groups.values());
}

/** @param {Intl.DisplayNames} names @param {string} tag that may be none that the browser knows */
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
  forgive();
  try {
    await page.view.speak(text, $("voice").value);
    $("text").value = "";
    tell(INVITATION);
  } catch (error) {
    failWith(error);
  }
}

async function interrupt() {
  if (document.body.dataset.phase !== "live" || !page.view) return;
  try {
    const dropped = await page.view.interrupt();
    tell(dropped > 0 ? `Interrupted: ${dropped.toFixed(1)} s will not be said.` : "Interrupted.");
  } catch (error) {
    failWith(error);
  }
}

/** The page is being left: the session must not outlive it. */
function leave() {
  if (!page.view || page.view.over) return;
  page.starting?.abort(); // the orchestrator gives up a start whose caller has gone
  if (page.view.session) client.stopOnLeave(page.view.session.session_id);
  void finish("The page was left.");
}

/** A tab in the background is not left yet, but after a while nobody watches any more. */
function visibilityChanged() {
  clearTimeout(page.hiddenTimer);
  if (!document.hidden) return;
  page.view?.talk?.release();
  page.hiddenTimer = setTimeout(() => void finish("Nobody watched for five minutes."), STOP_WHEN_HIDDEN_MS);
}

function listen() {
  $("start").addEventListener("click", () => void (page.view ? finish("Cancelled.") : start()));
  $("stop").addEventListener("click", () => void finish("Stopped."));
  $("interrupt").addEventListener("click", () => void interrupt());
  $("problem-close").addEventListener("click", forgive);
  $("unblock").addEventListener("click", () => {
    void page.context?.resume();
    page.view?.viewer.allowSound();
  });
  $("speak-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    void speak();
  });
  $("text").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    void speak();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("key-dialog").open) void interrupt();
  });
  document.addEventListener("visibilitychange", visibilityChanged);
  window.addEventListener("pagehide", leave);
}

if (NARROW.matches) $("panel").open = false;
enter("ready");
listen();
