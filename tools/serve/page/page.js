"use strict";

const $ = (id) => document.getElementById(id);
const KEPT = "membart-talk";
const NUMBERS = ["beams", "max_new_tokens", "seed", "temperature", "top_p", "top_k"];
let about = null;
let talk = null;

async function ask(path, body) {
  const how = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(path, how);
  } catch {
    throw new Error("the server does not answer: is membart serve still running?");
  }
  const text = await answer.text();
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    throw new Error(`the server answered ${answer.status}: ${text.slice(0, 200)}`);
  }
  if (answer.ok) return found;
  throw Object.assign(new Error(found.error || `the server answered ${answer.status}`), { status: answer.status });
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// --- the model ---

function size(count) {
  if (count >= 1e9) return `${(count / 1e9).toFixed(2)} B`;
  if (count >= 1e6) return `${(count / 1e6).toFixed(1)} M`;
  return count >= 1e3 ? `${(count / 1e3).toFixed(1)} k` : `${count}`;
}

function showAbout() {
  document.title = `${about.name}: membart serve`;
  $("name").textContent = about.name;
  $("place").textContent = about.place;
  const facts = {
    family: about.family === about.kind ? about.family : `${about.family} (${about.kind})`,
    parameters: size(about.parameters),
    slots: about.slots ? `${about.slots} × ${about.width}` : "none",
    memory: about.memory,
    window: `${about.window} tokens`,
    device: about.device,
  };
  $("facts").replaceChildren(...Object.entries(facts).map(([name, value]) => {
    const pair = make("div");
    pair.append(make("dt", "", name), make("dd", "", value));
    return pair;
  }));
  $("remarks").hidden = about.remarks.length === 0;
  $("remarks").replaceChildren(...about.remarks.map((text) => make("p", "", text)));
  for (const name of NUMBERS) $(name).value = about.generation[name];
  $("sample").checked = about.generation.sample;
  $("max_new_tokens").max = about.most_tokens;
  if (about.generation.max_new_tokens > about.most_tokens) $("max_new_tokens").value = about.most_tokens;
  $("compare").checked = about.carries;
  $("compare").disabled = !about.carries;
  $("compare-label").hidden = !about.carries;
  $("persona-settings").hidden = !about.persona;
  $("memory").hidden = about.slots === 0;
  settle();
}

// --- the conversation ---

function turnItem(turn) {
  const item = make("li", `turn ${turn.who} ${turn.place}`);
  const who = make("div", "who");
  who.append(make("b", "", turn.who === "you" ? "You" : "Model"), make("span", "note", turn.note));
  item.append(who);
  if (turn.afresh === null) {
    item.append(words(turn.text));
    return item;
  }
  const both = make("div", "both");
  for (const [name, title, text] of [["kept", "with memory", turn.text], ["reset", "memory reset", turn.afresh]]) {
    const side = make("div", name);
    const same = name === "reset" && turn.afresh === turn.text;
    side.append(make("h3", "", title), same ? make("p", "words none", "the same words") : words(text));
    both.append(side);
  }
  item.append(both);
  return item;
}

function words(text) {
  return text ? make("p", "words", text) : make("p", "words none", "nothing");
}

function showTalk() {
  const inside = (turn) => ["window", "edge", "edge_held", "cut"].includes(turn.place);
  const first = talk.turns.findIndex(inside);
  const items = [];
  talk.turns.forEach((turn, at) => {
    if (at === first && at > 0) items.push(make("li", "border", "the context window begins here"));
    items.push(turnItem(turn));
  });
  $("turns").replaceChildren(...items);
  $("empty").hidden = talk.turns.length > 0;
  $("persona").hidden = talk.persona.length === 0;
  $("persona").replaceChildren(...talk.persona.map((sentence) => {
    const item = turnItem({ ...sentence, who: "persona", afresh: null });
    item.querySelector("b").textContent = "Persona";
    return item;
  }));
  showSeen(talk.seen);
}

// --- the memory ---

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 2 : 1)} %`;

function drawBars(figure, values, top, even, tell) {
  const bars = figure.querySelector(".bars");
  bars.classList.toggle("dense", values.length > 64);
  bars.replaceChildren(...values.map((value, slot) => {
    const bar = make("i");
    bar.style.height = `${Math.min(100, (100 * value) / top)}%`;
    bar.title = `slot ${slot}: ${tell(value)}`;
    return bar;
  }));
  if (even !== null && even <= top) {
    const line = make("hr");
    line.style.bottom = `${(100 * even) / top}%`;
    bars.append(line);
  }
}

function describe(figure, text) {
  figure.querySelector(".sum").textContent = text;
  const bars = figure.querySelector(".bars");
  bars.setAttribute("role", "img");
  bars.setAttribute("aria-label", text);
}

function showGate(gate) {
  const figure = $("gate");
  figure.hidden = gate === null;
  if (gate === null) return;
  drawBars(figure, gate, 1, null, (value) => value.toFixed(3));
  const mean = gate.reduce((sum, value) => sum + value, 0) / gate.length;
  const ends = `${Math.min(...gate).toFixed(3)} to ${Math.max(...gate).toFixed(3)}`;
  describe(figure, `${gate.length} slots, from 0 to 1: mean ${mean.toFixed(3)}, ${ends}`);
}

function showAttention(figure, found) {
  figure.hidden = found === null;
  if (found === null) return;
  const select = figure.querySelector("select");
  const wanted = select.value;
  select.replaceChildren(new Option("mean of layers", ""), ...found.layers.map((_, at) => new Option(`layer ${at + 1}`, at)));
  select.value = wanted !== "" && Number(wanted) < found.layers.length ? wanted : "";
  const draw = () => {
    const values = select.value === "" ? found.mean : found.layers[Number(select.value)];
    const most = Math.max(...values);
    const sum = values.reduce((total, value) => total + value, 0);
    drawBars(figure, values, Math.max(most, found.even) * 1.05, found.even, percent);
    describe(figure, `${percent(sum)} of the attention of ${found.tokens} ${found.who} goes to the slots; most to ` +
      `slot ${values.indexOf(most)}, ${percent(most)}. Spread evenly, ${percent(found.even)} each (dashed).`);
  };
  select.onchange = draw;
  draw();
  drawHeat(figure.querySelector("canvas"), found.layers);
}

function drawHeat(canvas, layers) {
  const [slots, most] = [layers[0].length, Math.max(...layers.flat(), 1e-9)];
  [canvas.width, canvas.height] = [slots, layers.length];
  canvas.style.height = `${layers.length * 9}px`;
  canvas.title = "all layers, the first on top; the darker, the more attention a slot got";
  const brush = canvas.getContext("2d");
  layers.forEach((values, layer) => values.forEach((value, slot) => {
    brush.fillStyle = `rgba(0, 114, 178, ${value / most})`;
    brush.fillRect(slot, layer, 1, 1);
  }));
}

function showSeen(seen) {
  $("waiting").hidden = seen !== null;
  $("charts").hidden = seen === null;
  $("notes").replaceChildren(...(seen === null ? [] : seen.notes.map((text) => make("li", "", text))));
  if (seen === null) return;
  showGate(seen.gate);
  showAttention($("reading"), seen.reading);
  showAttention($("writing"), seen.writing);
}

// --- what the person does ---

function settle() {
  for (const name of ["temperature", "top_p", "top_k"]) $(name).disabled = !$("sample").checked;
  $("beams").disabled = $("sample").checked;
}

function wishes() {
  const found = { sample: $("sample").checked };
  for (const name of NUMBERS) {
    if ($(name).value !== "") found[name] = Number($(name).value);
  }
  return found;
}

function persona() {
  return $("persona-text").value.split("\n").map((line) => line.trim()).filter(Boolean);
}

function complain(error) {
  $("error").hidden = !error;
  $("error").textContent = error ? error.message : "";
}

function keep(found) {
  talk = found;
  sessionStorage.setItem(KEPT, found.name);
  showTalk();
}

async function busy(status, work) {
  complain(null);
  $("status").textContent = status;
  $("send").disabled = $("reset").disabled = true;
  try {
    await work();
  } catch (error) {
    complain(error);
  } finally {
    $("status").textContent = "";
    $("send").disabled = $("reset").disabled = false;
  }
}

async function say() {
  const text = $("text").value.trim();
  if (!text || $("send").disabled) return;
  await busy("writing ...", async () => {
    try {
      keep(await ask(`api/talks/${talk.name}/say`, { text, compare: $("compare").checked, wishes: wishes() }));
    } catch (error) {
      if (error.status === 404) {
        keep(await ask("api/talks", { persona: persona() }));
        throw new Error(`${error.message}; a new one has begun`);
      }
      throw error;
    }
    $("text").value = "";
    $("form").scrollIntoView({ block: "nearest" });
  });
  $("text").focus();
}

async function reset() {
  await busy("forgetting ...", async () => {
    try {
      keep(await ask(`api/talks/${talk.name}/reset`, { persona: persona() }));
    } catch (error) {
      if (error.status !== 404) throw error;
      keep(await ask("api/talks", { persona: persona() }));
    }
  });
}

async function start() {
  await busy("loading ...", async () => {
    about = await ask("api/about");
    showAbout();
    const name = sessionStorage.getItem(KEPT);
    if (name) {
      try {
        keep(await ask(`api/talks/${encodeURIComponent(name)}`));
        $("persona-text").value = talk.persona.map((sentence) => sentence.text).join("\n");
        return;
      } catch (error) {
        if (error.status !== 404) throw error;
      }
    }
    keep(await ask("api/talks", { persona: [] }));
  });
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); say(); });
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(); }
});
$("reset").addEventListener("click", reset);
$("sample").addEventListener("change", settle);
start();
