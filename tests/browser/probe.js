// Runs inside the page under test: looks at every frame the <video> shows and listens to the sound that arrives with it.
// `probe.frames`: [time in ms, mean absolute change of the mouth's box, of the forehead's box, RMS of the sound].
globalThis.probe = (() => {
  const video = document.getElementById("video");
  const context = new AudioContext();
  const analyser = new AnalyserNode(context, { fftSize: 2048 });
  context.createMediaStreamSource(document.getElementById("audio").srcObject).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  const boxes = { mouth: [0.42, 0.51, 0.2, 0.14], forehead: [0.4, 0.33, 0.2, 0.05] };
  const side = 64;
  const canvas = new OffscreenCanvas(side, side).getContext("2d", { willReadFrequently: true });
  const frames = [];
  const last = {};

  const change = (name) => {
    const [x, y, w, h] = boxes[name];
    const { videoWidth, videoHeight } = video;
    canvas.drawImage(video, x * videoWidth, y * videoHeight, w * videoWidth, h * videoHeight, 0, 0, side, side);
    const { data } = canvas.getImageData(0, 0, side, side);
    const green = data.filter((_, k) => k % 4 === 1);
    const before = last[name] ?? green;
    last[name] = green;
    return green.reduce((sum, value, k) => sum + Math.abs(value - before[k]), 0) / green.length;
  };
  const rms = () => {
    analyser.getFloatTimeDomainData(samples);
    return Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / samples.length);
  };
  const see = (now) => {
    frames.push([now, change("mouth"), change("forehead"), rms()]);
    video.requestVideoFrameCallback(see);
  };
  video.requestVideoFrameCallback(see);
  return { frames, rms, take: () => frames.splice(0) };
})();
