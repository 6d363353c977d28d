/**
 * The texts of `<talking-avatar>`, in the language that is in force where it stands (`lang`). A page may replace any of them.
 *
 * @module embed-texts
 */

const EN = {
  start: "Start talking",
  starting: "One moment …",
  stop: "End",
  mute: "Turn sound off",
  unmute: "Turn sound on",
  talk: "Turn your microphone on",
  quiet: "Turn your microphone off",
  text: "Write a message",
  send: "Send",
  video: "Talking avatar",
  log: "Conversation",
  you: "You",
  avatar: "Avatar",
  listening: "Listening …",
  thinking: "Thinking …",
  recovering: "Reconnecting …",
  "ended.minutes_exhausted": "The time for this conversation is over.",
  "ended.expired": "The time for this conversation is over.",
  "ended.token_revoked": "This conversation was ended by the site.",
  "error.no_token": "This avatar is not set up: it has no token.",
  "error.unauthorized": "This page was open for too long. Reload it to talk.",
  "error.origin_forbidden": "This site may not show this avatar.",
  "error.forbidden": "This avatar is not available here.",
  "error.minutes_exhausted": "The time for conversations here is used up. Reload the page later.",
  "error.quota_exceeded": "The avatar talks to somebody else. Try again in a moment.",
  "error.rate_limited": "That was too often. Try again in a moment.",
  "error.at_capacity": "The avatar is busy. Try again in a moment.",
  "error.conversation_provider": "The avatar has trouble answering. Say it again, or try later.",
  "error.conversation_unavailable": "The avatar cannot talk at the moment. Try again later.",
  "error.session_conflict": "One moment: the avatar has not answered yet.",
  "error.network": "The avatar cannot be reached. Check that you are online, then try again.",
  "error.room_unreachable": "No video connection is possible. A firewall may block it.",
  "error.room_left": "The connection was lost. Try again.",
  "error.microphone_forbidden": "The browser may not use the microphone. Allow it in the address bar, then try again.",
  "error.microphone_missing": "No microphone was found. You can write instead.",
  "error.microphone_busy": "The microphone is in use by another program.",
  "error.microphone_lost": "The microphone was unplugged.",
  "error.microphone_insecure": "The microphone works on pages with https only. You can write instead.",
  "error.other": "Something went wrong. Try again in a moment.",
};

/** @type {Record<keyof typeof EN, string>} */
const ZH = {
  start: "开始对话",
  starting: "请稍候 …",
  stop: "结束",
  mute: "关闭声音",
  unmute: "打开声音",
  talk: "打开麦克风",
  quiet: "关闭麦克风",
  text: "写一条消息",
  send: "发送",
  video: "会说话的头像",
  log: "对话",
  you: "你",
  avatar: "头像",
  listening: "正在听 …",
  thinking: "正在想 …",
  recovering: "正在重新连接 …",
  "ended.minutes_exhausted": "本次对话的时间已用完。",
  "ended.expired": "本次对话的时间已用完。",
  "ended.token_revoked": "网站结束了这次对话。",
  "error.no_token": "这个头像还没有设置好：缺少令牌。",
  "error.unauthorized": "页面打开得太久了。请刷新页面再对话。",
  "error.origin_forbidden": "这个网站不能显示这个头像。",
  "error.forbidden": "这个头像在这里不可用。",
  "error.minutes_exhausted": "这里的对话时间已用完。请稍后刷新页面。",
  "error.quota_exceeded": "头像正在和别人说话。请稍后再试。",
  "error.rate_limited": "太频繁了。请稍后再试。",
  "error.at_capacity": "头像正忙。请稍后再试。",
  "error.conversation_provider": "头像暂时无法回答。请再说一遍，或稍后再试。",
  "error.conversation_unavailable": "头像现在不能说话。请稍后再试。",
  "error.session_conflict": "请稍候：头像还没有回答。",
  "error.network": "无法连接头像。请检查网络后再试。",
  "error.room_unreachable": "无法建立视频连接，可能被防火墙阻止。",
  "error.room_left": "连接断开了。请再试一次。",
  "error.microphone_forbidden": "浏览器不能使用麦克风。请在地址栏允许后再试。",
  "error.microphone_missing": "没有找到麦克风。你可以改为打字。",
  "error.microphone_busy": "麦克风正被其他程序使用。",
  "error.microphone_lost": "麦克风已断开。",
  "error.microphone_insecure": "麦克风只能在 https 页面上使用。你可以改为打字。",
  "error.other": "出了点问题。请稍后再试。",
};

/** @typedef {keyof typeof EN} TextKey */
/** @typedef {Partial<Record<TextKey, string>>} Texts */

/** The texts for a language tag: Chinese for `zh…`, else English. @param {string} language @returns {Record<TextKey, string>} */
export const textsFor = (language) => (/^zh\b/i.test(language) ? ZH : EN);

/**
 * A sentence for a visitor. @param {string} code of an error, or why a session ended @param {"error" | "ended"} kind
 * @param {Record<string, string>} texts @returns {string | undefined} undefined: for an end that needs no words
 */
export const sentence = (kind, code, texts) => texts[`${kind}.${code}`] ?? (kind === "error" ? texts["error.other"] : undefined);
