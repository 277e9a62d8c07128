// Sends the image that somebody drops, pastes or chooses to /predict, and shows the answers.
"use strict";

const get = (id) => document.getElementById(id);
const cards = {};
let limits = null;
let latest = 0; // of several images sent quickly the last one counts
let shownUrl = null;

function number(value) {
  return value.toLocaleString("en");
}

function milliseconds(value) {
  return `${value >= 100 ? value.toFixed(0) : value.toPrecision(3)} ms`;
}

function kinds() {
  return limits.types.map((type) => type.replace("image/", "").toUpperCase()).join(", ");
}

function size(bytes) {
  return bytes >= 1e6 ? `${Number((bytes / 1e6).toPrecision(3))}\u00a0MB` : `${Math.ceil(bytes / 1e3)}\u00a0kB`;
}

function addCard(who, network) {
  const card = get("card").content.firstElementChild.cloneNode(true);
  card.classList.add(who);
  card.querySelector("h2").textContent = who;
  card.querySelector(".name").textContent = network.name;
  const facts = [`${number(network.classes)} classes`, `${network.width} × ${network.height} pixels`];
  if (network.params) facts.push(`${number(network.params)} parameters`);
  if (network.bytes) facts.push(size(network.bytes));
  if (network.top1 !== null) {
    const of = network.top1_of ? ` (${network.top1_of})` : "";
    facts.push(`top-1 ${network.top1.toFixed(2)} %${of}`);
  }
  if (network.runtime) facts.push(network.runtime);
  card.querySelector(".facts").textContent = facts.join(" · ");
  get("answers").append(card);
  cards[who] = card;
  clear(card);
}

function clear(card) {
  card.querySelector(".latency").classList.add("waiting");
  card.querySelector(".latency strong").textContent = "– ms";
  card.querySelector("ol").replaceChildren();
}

function fill(card, answer) {
  card.querySelector(".latency").classList.remove("waiting");
  card.querySelector(".latency strong").textContent = milliseconds(answer.latency_ms);
  const choices = answer.top.map((choice) => {
    const item = get("choice").content.firstElementChild.cloneNode(true);
    const percent = 100 * choice.probability;
    item.querySelector(".class").textContent = choice.name;
    item.querySelector(".percent").textContent = `${percent.toFixed(1)} %`;
    item.querySelector(".bar").style.width = `${percent}%`;
    return item;
  });
  card.querySelector("ol").replaceChildren(...choices);
}

function show(file) {
  const image = get("shown");
  if (shownUrl) URL.revokeObjectURL(shownUrl);
  shownUrl = URL.createObjectURL(file);
  image.onload = () => image.classList.toggle("tiny", image.naturalWidth < 100);
  image.onerror = () => { image.hidden = true; };
  image.src = shownUrl;
  image.alt = `The image ${file.name || "that was pasted"}`;
  image.hidden = false;
  get("hint").textContent = "Drop or paste another, or";
}

function say(state, problem = "") {
  get("state").textContent = state;
  get("problem").textContent = problem;
}

async function ask(file) {
  const response = await fetch("/predict?top=5", {
    method: "POST",
    headers: { "Content-Type": file.type || "application/octet-stream" },
    body: file,
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function classify(file) {
  const turn = ++latest;
  Object.values(cards).forEach(clear);
  show(file);
  if (limits && file.size > limits.bytes) {
    say("", `The image has ${size(file.size)}, and at most ${size(limits.bytes)} are taken.`);
    return;
  }
  if (limits && file.type && !limits.types.includes(file.type)) {
    say("", `${file.name || "That"} is not an image of a kind that is taken: expected ${kinds()}.`);
    return;
  }
  say("Classifying …");
  let answer;
  try {
    answer = await ask(file);
  } catch (error) {
    if (turn === latest) say("", error instanceof TypeError ? "The server does not answer." : error.message);
    return;
  }
  if (turn !== latest) return;
  fill(cards.student, answer.student);
  if (answer.teacher) fill(cards.teacher, answer.teacher);
  const said = [`${file.name || "Pasted image"}, ${number(answer.width)} × ${number(answer.height)} pixels.`];
  if (answer.is_first_of_several) said.push("Only its first image counts.");
  said.push(`The student says ${answer.student.top[0].name}`
    + (answer.teacher ? (answer.same_class ? ", and so does the teacher." : `, the teacher ${answer.teacher.top[0].name}.`) : "."));
  say(said.join(" "));
}

function firstImage(transfer) {
  const files = [...transfer.files];
  if (files.length) classify(files[0]);
  else if (transfer.types.length) say("", "That is no file: drop an image.");
}

function listen() {
  get("file").addEventListener("change", (event) => {
    if (event.target.files.length) classify(event.target.files[0]);
    event.target.value = ""; // so that the same file may be chosen again
  });
  // The whole window takes the image: beside the frame the browser would open it instead.
  for (const name of ["dragenter", "dragover"]) {
    window.addEventListener(name, (event) => { event.preventDefault(); get("drop").classList.add("over"); });
  }
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) get("drop").classList.remove("over");
  });
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    get("drop").classList.remove("over");
    firstImage(event.dataTransfer);
  });
  window.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) firstImage(event.clipboardData);
  });
}

async function start() {
  let models;
  try {
    models = await (await fetch("/models")).json();
  } catch {
    say("", "The server does not answer.");
    return;
  }
  limits = models.limits;
  addCard("student", models.student);
  if (models.teacher) addCard("teacher", models.teacher);
  get("about").textContent = models.teacher
    ? `${models.student.name} beside the teacher ${models.teacher.name}`
    : models.student.name;
  if (models.teacher && models.teacher.runtime !== models.student.runtime) {
    get("about").textContent += ". They are run by different programs, so their times do not compare the networks alone: "
      + `${models.student.runtime || "not known"}; ${models.teacher.runtime || "not known"}.`;
  }
  get("bounds").textContent = `${kinds()}; up to ${size(limits.bytes)}`;
  listen();
}

start();
