"use strict";
(() => {
  const panel = document.querySelector(".controls");
  const grid = document.querySelector(".clips");
  const clips = [...grid.querySelectorAll("video")];
  if (!panel || clips.length !== 2) return;
  const [over, under = 1] = grid.dataset.rate.split("/").map(Number);
  const frame = under / over || 1 / 25;
  const button = panel.querySelector("#together");
  const moment = panel.querySelector("#moment");
  panel.hidden = false;
  const show = (seconds) => { moment.textContent = "frame " + Math.round(seconds / frame); };
  const go = (seconds) => {
    const there = Math.min(Math.max(0, seconds), clips[0].duration || 0);
    clips.forEach((clip) => { clip.pause(); clip.currentTime = there; });
    show(there);
  };
  button.addEventListener("click", () => {
    if (!clips[0].paused || !clips[1].paused) { clips.forEach((clip) => clip.pause()); return; }
    clips[1].currentTime = clips[0].currentTime;
    clips.forEach((clip) => clip.play());
  });
  panel.querySelector("#back").addEventListener("click", () => go(clips[0].currentTime - frame));
  panel.querySelector("#on").addEventListener("click", () => go(clips[0].currentTime + frame));
  const tell = () => { button.textContent = clips.some((clip) => !clip.paused) ? "Pause both" : "Play both"; };
  clips.forEach((clip) => { clip.addEventListener("play", tell); clip.addEventListener("pause", tell); });
  clips[0].addEventListener("timeupdate", () => {
    const off = clips[1].currentTime - clips[0].currentTime;
    if (!clips[0].paused && Math.abs(off) > 2 * frame) clips[1].currentTime = clips[0].currentTime;
  });
  clips[0].addEventListener("pause", () => show(clips[0].currentTime));
})();
