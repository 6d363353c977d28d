// Runs inside the page: joins a `pattern` session of its own, sends bursts of tone on frame boundaries (200 ms of every
// 600 ms) and notes when the picture turns white and when the sound begins, in `performance.now()` milliseconds.
// Also a check that `avatar-client.js` and `viewer.js` can be used by themselves.
(async () => {
  const { AvatarClient, AudioLink } = await import("/avatar-client.js");
  const { Viewer } = await import("/viewer.js");
  const { token } = await (await fetch("/page/token")).json();
  const client = new AvatarClient({ token });
  const session = await client.start({ room: `skew-${crypto.randomUUID()}`, engine: "pattern", width: 192, height: 192, fps: 25 });
  const video = document.getElementById("video");
  const viewer = new Viewer({ video, audio: document.getElementById("audio") });
  const context = new AudioContext();
  const analyser = new AnalyserNode(context, { fftSize: 256 });
  const samples = new Float32Array(analyser.fftSize);
  const canvas = new OffscreenCanvas(8, 8).getContext("2d", { willReadFrequently: true });
  const measured = { seen: [], heard: [], reported: [] };
  globalThis.skew = { measured, stop: () => client.stop(session.session_id) };

  let lit = false;
  const see = (_, { expectedDisplayTime }) => {
    const { videoWidth: w, videoHeight: h } = video;
    canvas.drawImage(video, 0.45 * w, 0.45 * h, 0.1 * w, 0.1 * h, 0, 0, 8, 8);
    const white = canvas.getImageData(4, 4, 1, 1).data[1] > 128;
    if (white && !lit) measured.seen.push(expectedDisplayTime);
    lit = white;
    video.requestVideoFrameCallback(see);
  };
  video.requestVideoFrameCallback(see);

  let loudAt = -Infinity;
  const hear = () => {
    analyser.getFloatTimeDomainData(samples);
    const first = samples.findIndex((sample) => Math.abs(sample) > 0.05);
    if (first < 0) return;
    const now = performance.now();
    if (now - loudAt > 200) measured.heard.push(now - ((samples.length - first) / context.sampleRate) * 1000);
    loudAt = now;
  };
  viewer.addEventListener("audiotrack", ({ detail }) => {
    context.createMediaStreamSource(new MediaStream([detail])).connect(analyser);
    setInterval(hear, 3);
  });
  setInterval(async () => measured.reported.push((await viewer.stats()).skewMs), 1000);

  viewer.startAudio();
  await viewer.join(session);
  const link = new AudioLink(session.audio_url);
  link.open();
  await new Promise((resolve) => link.addEventListener("hello", resolve, { once: true }));
  link.start();
  const began = performance.now();
  let sent = 0;
  const send = () => {
    while (sent / 16 < performance.now() - began) {
      const loud = (sent / 640) % 15 < 5;
      link.push(Int16Array.from({ length: 640 }, (_, k) => (loud ? 12000 * Math.sin((2 * Math.PI * 440 * (sent + k)) / 16000) : 0)));
      sent += 640;
    }
  };
  setInterval(send, 10);
})();
