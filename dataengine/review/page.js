"use strict";
// The review page. A decision shows at once and waits in a queue, kept by the browser, until the server has it on its
// disk; only then does the page say "saved". All text is set as text, never as markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const AHEAD = 6; // prompts whose picture is loaded before it is their turn
  const MOST_VIEWS = 40;
  const RATE_MINUTES = 5;
  const UNSEEN = /[\p{Cc}\p{Cs}\u2028\u2029\u202a-\u202e\u2066-\u2069]/u;
  const PATIENCE = 1000; // ms before a server that does not answer is asked again
  const byId = (id) => document.getElementById(id);
  const filters = ["concept", "family", "verdict", "kind", "state"];

  let prompts = []; // all of them, in short
  let words = []; // of each prompt: what each reviewer said last
  let listed = []; // numbers of the prompts that passed the filters when these were set
  let at = 0; // position in `listed`
  let history = []; // own decisions that can be undone: {id, number, before}
  let blind = false;
  let palette = [];
  let showMasks = true;
  const start = JSON.parse(byId("start").textContent); // the name the server was started with
  let reviewer = start;
  const made = []; // times of verdicts, for the rate
  const views = new Map(); // of the last run folders: `loading`, and `found` once it is there, with its photo decoded

  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const draw = (name, attributes, parent) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.append(element);
    return element;
  };
  const toast = (text) => {
    byId("toast").textContent = text;
    byId("toast").hidden = false;
    clearTimeout(toast.timer);
    toast.timer = setTimeout(() => { byId("toast").hidden = true; }, 6000);
  };

  // The browser's storage may be full or switched off; decisions are then sent all the same.
  const stored = (action) => {
    try {
      return action();
    } catch (error) {
      if (!stored.told) toast(`The browser keeps nothing (${error.message}): do not close this page before it says “saved”`);
      stored.told = true;
      return null;
    }
  };

  // What is where.

  const current = () => (listed.length ? prompts[listed[at]] : null);
  const sameSet = (a, b) => a.length === b.length && a.every((value) => b.includes(value));
  const keyOf = (prompt) => JSON.stringify([prompt.run, prompt.concept, prompt.negative, prompt.index, prompt.basis]);
  const asMade = (view, prompt) => view.prompts.find((p) => keyOf({ ...p, run: prompt.run }) === prompt.key);
  const mine = (prompt) => (Object.hasOwn(words[prompt.number], reviewer) ? words[prompt.number][reviewer] : undefined);
  const onStage = (prompt) => prompt && ready(prompt) && byId("stage").dataset.number === String(prompt.number);
  const ready = (prompt) => prompt && views.get(prompt.run)?.found;
  const shown = (prompt) => {
    const made = asMade(ready(prompt), prompt);
    return mine(prompt) || { verdict: null, prompt: made.prompt, satisfying: made.satisfying };
  };

  const view = (run) => {
    const known = views.get(run) || {};
    views.delete(run);
    views.set(run, known); // now the newest
    known.loading ||= load(run).then((found) => (known.found = found));
    known.loading.catch(() => views.delete(run));
    if (views.size > MOST_VIEWS) views.delete(views.keys().next().value);
    return known.loading;
  };
  const load = async (run) => {
    const named = new URLSearchParams({ desk, run });
    const image = new Image();
    image.alt = "";
    image.src = `/photo?${named}`;
    const decoded = image.decode().then(() => image, () => null);
    const answer = await fetch(`/view?${named}`);
    if (!answer.ok) throw new Error((await answer.json()).error);
    const found = await answer.json();
    found.image = await decoded;
    if (found.photo && !found.image) throw new Error("its photo could not be loaded");
    return found;
  };

  // Drawing.

  const picture = (found, prompt, now) => {
    const svg = draw("svg", { viewBox: `0 0 ${found.width} ${found.height}` });
    if (prompt.negative) return svg;
    const stage = byId("stage").getBoundingClientRect();
    const scale = Math.min(stage.width / found.width, stage.height / found.height) || 1;
    for (const region of found.regions.filter((r) => now.satisfying.includes(r.index) && r.path)) {
      const colour = palette[region.index % palette.length];
      for (const line of ["case", "rim"]) draw("path", { class: line, d: region.path }, svg);
      draw("path", { class: "edge", d: region.path, fill: colour, stroke: colour }, svg);
    }
    const taken = [];
    found.regions.forEach((region, position) => {
      if (!region.path) return;
      const chosen = now.satisfying.includes(region.index);
      const radius = 11 / scale;
      let x = Math.min(Math.max(region.at[0], radius), found.width - radius);
      let y = Math.min(Math.max(region.at[1], radius), found.height - radius);
      const meets = () => taken.some(([a, b]) => Math.hypot(a - x, b - y) < 2 * radius);
      for (let turn = 0; turn < found.regions.length && meets(); turn++) { // beside another's, then below
        x += 2 * radius;
        if (x > found.width - radius) { x = radius; y = Math.min(y + 2 * radius, found.height - radius); }
      }
      taken.push([x, y]);
      const group = draw("g", { class: chosen ? "number" : "number out" }, svg);
      draw("circle", { cx: x, cy: y, r: radius, fill: chosen ? palette[region.index % palette.length] : "#222" }, group);
      const text = draw("text", { x, y, "font-size": 13 / scale, "stroke-width": 3 / scale }, group);
      text.textContent = position + 1;
    });
    return svg;
  };

  const show = () => {
    const prompt = current();
    byId("edit").hidden = true;
    byId("prompt").hidden = false;
    if (!prompt) {
      byId("stage").replaceChildren(make("div", "note", "No prompt passes these filters."));
      byId("stage").dataset.number = "";
      for (const id of ["place", "prompt", "mine", "regions", "said"]) byId(id).replaceChildren();
      count();
      remember();
      return;
    }
    const loading = view(prompt.run);
    if (ready(prompt)) {
      render(prompt);
    } else {
      byId("stage").setAttribute("aria-busy", "true");
      byId("stage").replaceChildren(make("div", "note", "loading"));
      for (const id of ["place", "prompt", "mine", "regions", "said"]) byId(id).replaceChildren();
      loading.then(() => {
        if (current() === prompt) render(prompt);
      }, (error) => {
        if (current() !== prompt) return;
        byId("stage").replaceChildren(make("div", "note", `Cannot be shown: ${error.message}`));
        setTimeout(() => { if (current() === prompt && !ready(prompt)) show(); }, PATIENCE);
      });
    }
    for (let step = 1; step <= AHEAD; step++) ahead(at + step);
    ahead(at - 1);
  };
  const ahead = (position) => {
    const prompt = prompts[listed[position]];
    if (prompt) view(prompt.run).catch(() => {});
  };

  const render = (prompt) => {
    const found = ready(prompt);
    const now = shown(prompt);
    const parts = [picture(found, prompt, now)];
    parts.unshift(found.image || make("div", "note", "Its photo is missing or cannot be read."));
    byId("stage").removeAttribute("aria-busy");
    byId("stage").replaceChildren(...parts);
    byId("stage").dataset.number = prompt.number;
    const kind = prompt.negative ? " · negative: nothing in the photo should fit" : "";
    const family = prompt.family ? ` · ${prompt.family.replaceAll("_", " ")}` : "";
    byId("place").textContent = `${at + 1} of ${listed.length} · ${prompt.concept}${family}${kind} · ${found.file}`;
    if (byId("prompt").textContent !== now.prompt) byId("prompt").scrollTop = 0;
    byId("prompt").textContent = now.prompt;
    const edited = asMade(found, prompt).prompt !== now.prompt || !sameSet(asMade(found, prompt).satisfying, now.satisfying);
    const verdict = { ACCEPT: "accepted", REJECT: "rejected" }[now.verdict] || "";
    byId("mine").className = verdict;
    byId("mine").textContent = [verdict && `You ${verdict} it`, edited && "changed by you"].filter(Boolean).join(", ");
    byId("regions").replaceChildren(...(prompt.negative ? [] : found.regions.map((region, position) => {
      const button = make("button");
      button.type = "button";
      button.style.borderLeftColor = palette[region.index % palette.length];
      button.setAttribute("aria-pressed", now.satisfying.includes(region.index));
      button.append(make("kbd", "", position + 1), make("span", "label", region.label));
      button.addEventListener("click", () => { toggle(position); byId("regions").children[position]?.focus(); });
      return button;
    })));
    byId("said").replaceChildren(...said(prompt));
    count();
    remember();
  };

  const said = (prompt) => {
    const lines = [];
    const made = asMade(ready(prompt), prompt);
    if (!blind) {
      lines.push(make("div", "quiet", `Engine: ${prompt.accepted ? "ACCEPT" : "REJECT"}${made.reason ? ` – ${made.reason}` : ""}`));
    }
    for (const [name, word] of Object.entries(words[prompt.number])) {
      if (name === reviewer) continue;
      const verdict = { ACCEPT: "accepted", REJECT: "rejected" }[word.verdict] || "changed";
      const text = word.prompt !== made.prompt ? ` as “${word.prompt}”` : "";
      lines.push(make("div", "quiet", `${name}: ${verdict}${text}${sameSet(word.satisfying, made.satisfying) ? "" : ", other regions"}`));
    }
    return lines;
  };

  const count = () => {
    const done = listed.filter((number) => mine(prompts[number])?.verdict).length;
    byId("done").textContent = done.toLocaleString("en");
    byId("left").textContent = (listed.length - done).toLocaleString("en");
    const since = Date.now() - RATE_MINUTES * 60000;
    while (made.length && made[0] < since) made.shift();
    const minutes = made.length > 1 ? (Date.now() - made[0]) / 60000 : 0;
    byId("rate").textContent = minutes > 0.05 ? ` · ${(made.length / minutes).toFixed(0)} a minute` : "";
  };

  // Decisions.

  // Each waiting decision is kept on its own, so that two windows do not overwrite one another's.
  let desk = "";
  let queue = []; // {made, decision, before, after}
  let busy = false;
  let lost = []; // refused ones: {number, text}
  const held = new Set(); // run folders that could not be written to, left alone for a while
  const nameOf = (id) => `decision ${desk} ${id}`;
  const keptOnes = () => stored(() => Object.keys(localStorage).filter((key) => key.startsWith(nameOf("")))
    .map((key) => JSON.parse(localStorage.getItem(key))).sort((a, b) => a.made - b.made)) || [];
  const tell = () => {
    const state = byId("saved");
    const some = `${queue.length} decision${queue.length === 1 ? "" : "s"}`;
    const failed = queue.some(({ decision }) => held.has(decision.run));
    state.className = failed || lost.length ? "failed" : queue.length ? "waiting" : "";
    state.textContent = lost.length ? `${lost.length} not written: ${lost[0].text}`
      : failed ? `not saved: ${some} wait for the server` : queue.length ? `saving ${some}` : "saved";
  };

  const decide = (prompt, action, after, undoes) => {
    const before = shown(prompt);
    const id = crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random().toString(36).slice(2, 12)}`;
    const told = action === "edit" || action === "regions" ? after : before;
    const decision = {
      id, desk, reviewer, run: prompt.run, concept: prompt.concept, negative: prompt.negative, index: prompt.index,
      basis: prompt.basis, action, prompt: told.prompt, satisfying: told.satisfying, undoes: undoes ?? null,
    };
    const entry = { made: performance.timeOrigin + performance.now(), decision, before, after };
    queue.push(entry);
    lay(entry, prompt.number);
    stored(() => localStorage.setItem(nameOf(id), JSON.stringify(entry)));
    send();
  };
  // What a waiting decision makes of what the server told.
  const lay = ({ decision, before, after }, number) => {
    if (decision.reviewer !== reviewer) return;
    words[number] = { ...words[number], [reviewer]: after };
    if (decision.action === "undo") history = history.filter((entry) => entry.id !== decision.undoes);
    else if (!history.some((entry) => entry.id === decision.id)) history.push({ id: decision.id, number, before });
  };

  const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });
  const post = async (decision) => {
    let answer;
    try {
      answer = await fetch("/decisions", {
        method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(decision),
      });
    } catch {
      return { later: "" };
    }
    const told = await answer.json().catch(() => ({}));
    if (answer.ok && told.words) return { words: told.words };
    if ([409, 422].includes(answer.status) && typeof told.error === "string") return { refused: told.error };
    return { later: told.error || `the server answers ${answer.status}` }; // whatever else answers there
  };
  const send = async () => {
    if (busy) return;
    busy = true;
    while (queue.length) {
      tell();
      const entry = queue.find(({ decision }) => !held.has(decision.run));
      if (!entry) {
        await pause(PATIENCE);
        held.clear();
        continue;
      }
      const answer = await post(entry.decision);
      if (answer.later !== undefined) {
        held.add(entry.decision.run);
        if (answer.later && send.told !== answer.later) toast(answer.later);
        send.told = answer.later;
        continue;
      }
      await settle(entry, answer);
    }
    held.clear();
    busy = false;
    tell();
  };
  const settle = async (entry, answer) => {
    const { decision } = entry;
    queue = queue.filter((other) => other !== entry);
    stored(() => localStorage.removeItem(nameOf(decision.id)));
    const number = numbers.get(keyOf(decision));
    if (answer.refused) {
      lost.push({ number, text: answer.refused });
      await refresh();
    } else if (number !== undefined && !queue.some((other) => keyOf(other.decision) === keyOf(decision))) {
      words[number] = answer.words;
    }
  };

  const judge = (verdict) => {
    const prompt = current();
    if (!onStage(prompt)) return;
    const now = shown(prompt);
    if (verdict === "ACCEPT" && !prompt.negative && !now.satisfying.length) {
      toast("It means no region: choose one with its number before you accept it");
      return;
    }
    decide(prompt, verdict === "ACCEPT" ? "accept" : "reject", { ...now, verdict });
    made.push(Date.now());
    if (at + 1 < listed.length) move(1);
    else { render(prompt); toast("That was the last of this list"); }
  };

  const toggle = (position) => {
    const prompt = current();
    const region = onStage(prompt) && ready(prompt).regions[position];
    if (!region || prompt.negative) return;
    const now = shown(prompt);
    const satisfying = now.satisfying.includes(region.index)
      ? now.satisfying.filter((index) => index !== region.index)
      : [...now.satisfying, region.index].sort((a, b) => a - b);
    decide(prompt, "regions", { ...now, satisfying, verdict: satisfying.length ? now.verdict : null });
    render(prompt);
  };

  const undo = () => {
    const last = history.at(-1);
    if (!last) { toast("Nothing to undo"); return; }
    const prompt = prompts[last.number];
    const turn = () => {
      if (history.at(-1) !== last) return; // pressed twice before its picture was there
      decide(prompt, "undo", last.before, last.id);
      const place = listed.indexOf(last.number);
      if (place >= 0) at = place;
      else { listed.splice(at, 0, last.number); }
      show();
    };
    if (ready(prompt)) turn();
    else view(prompt.run).then(turn, (error) => toast(error.message));
  };

  const edit = () => {
    const prompt = current();
    if (!onStage(prompt)) return;
    byId("edit-text").value = shown(prompt).prompt;
    byId("prompt").hidden = true;
    byId("edit").hidden = false;
    byId("edit-text").focus();
    byId("edit-text").select();
  };
  // Whether the text was taken, or there was none to take.
  const endEdit = (save) => {
    if (byId("edit").hidden) return true;
    const prompt = current();
    const text = byId("edit-text").value.split(/\s+/u).filter(Boolean).join(" ");
    if (save && (!text || UNSEEN.test(text))) {
      toast("A prompt needs words, and nothing that cannot be seen");
      return false;
    }
    byId("edit").hidden = true;
    byId("prompt").hidden = false;
    byId("edit-text").blur();
    if (save && text !== shown(prompt).prompt) decide(prompt, "edit", { ...shown(prompt), prompt: text });
    render(prompt);
    return true;
  };

  const move = (steps) => {
    const to = Math.min(Math.max(at + steps, 0), listed.length - 1);
    if (to === at || !listed.length) return;
    at = to;
    show();
  };
  const masks = () => {
    showMasks = !showMasks;
    byId("stage").classList.toggle("no-masks", !showMasks);
    byId("masks").setAttribute("aria-pressed", showMasks);
  };

  // Filters.

  const disagrees = (prompt) => {
    const told = Object.values(words[prompt.number]).map((word) => word.verdict).filter(Boolean);
    if (told.length && !blind) told.push(prompt.accepted ? "ACCEPT" : "REJECT");
    return new Set(told).size > 1;
  };
  const fits = (prompt, { concept, family, verdict, kind, state }) => {
    const own = mine(prompt)?.verdict;
    return (!concept || prompt.concept === concept)
      && (!family || prompt.family === family)
      && (!verdict || prompt.accepted === (verdict === "accepted"))
      && (!kind || prompt.negative === (kind === "negative"))
      && (!state || { unreviewed: !own, accepted: own === "ACCEPT", rejected: own === "REJECT",
        disagreement: disagrees(prompt) }[state]);
  };
  const wanted = () => {
    const now = Object.fromEntries(filters.map((id) => [id, byId(id).value]));
    return blind ? { ...now, verdict: "", state: now.state === "disagreement" ? "" : now.state } : now;
  };
  const apply = (number) => {
    if (prompts.length && !endEdit(true)) endEdit(false);
    const now = wanted();
    const set = filters.filter((id) => now[id]);
    byId("filtered").textContent = set.length ? `(${set.map((id) => byId(id).selectedOptions[0].textContent).join(", ")})` : "";
    listed = prompts.filter((prompt) => fits(prompt, now)).map((prompt) => prompt.number);
    at = Math.max(listed.indexOf(number), 0);
    show();
  };
  const offer = (id, values) => {
    const before = byId(id).value;
    const options = [["", "all"], ...[...values].filter(Boolean).map((value) => [value, value.replaceAll("_", " ")])];
    byId(id).replaceChildren(...options.map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }));
    byId(id).value = [...values].includes(before) ? before : "";
  };
  const offerFamilies = () => {
    const concept = byId("concept").value;
    offer("family", new Set(prompts.filter((p) => !concept || p.concept === concept).map((p) => p.family).sort()));
  };
  // The address tells filters and place. Browsers allow only so many changes of it in a while, Safari 100 in 30 s.
  const changes = [];
  const remember = () => {
    clearTimeout(remember.timer);
    while (changes.length && changes[0] < Date.now() - 10000) changes.shift();
    if (changes.length >= 30) { remember.timer = setTimeout(remember, 500); return; }
    changes.push(Date.now());
    const told = new URLSearchParams(Object.entries(wanted()).filter(([, value]) => value));
    const prompt = current();
    if (prompt) told.set("at", placeOf(prompt));
    try {
      window.history.replaceState(null, "", `#${told}`);
    } catch {
      remember.timer = setTimeout(remember, 500);
    }
  };
  const placeOf = (prompt) => [prompt.run, prompt.concept, prompt.negative ? "n" : "p", prompt.index].join("/");

  // Begin.

  const fetchPrompts = async () => {
    const answer = await fetch(`/prompts?reviewer=${encodeURIComponent(reviewer)}`);
    if (!answer.ok) throw new Error(answer.statusText);
    return answer.json();
  };
  let numbers = new Map(); // of prompts, by key
  // Take what the server tells of people's words; its list may be another than the page's, after a restart.
  const adopt = (told) => {
    const numberOf = told.prompts.map((prompt) => numbers.get(keyOf(prompt)));
    words = prompts.map(() => ({}));
    numberOf.forEach((number, other) => { if (number !== undefined) words[number] = told.words[other] || {}; });
    history = told.history.map((entry) => ({ ...entry, number: numberOf[entry.number] }))
      .filter((entry) => entry.number !== undefined);
    for (const entry of queue) {
      const number = numbers.get(keyOf(entry.decision));
      if (number !== undefined) lay(entry, number);
    }
  };
  const refresh = async () => {
    const told = await fetchPrompts().catch(() => null);
    if (!told) return;
    adopt(told);
    if (onStage(current()) && byId("edit").hidden) render(current());
    count();
  };
  const begin = async () => {
    const named = stored(() => JSON.parse(localStorage.getItem("reviewer")));
    if (named?.start === start && named.name) reviewer = named.name;
    const told = await fetchPrompts();
    ({ blind, palette, desk } = told);
    document.body.classList.toggle("blind", blind);
    prompts = told.prompts.map((prompt, number) => ({ ...prompt, number, key: keyOf(prompt) }));
    numbers = new Map(prompts.map((prompt) => [prompt.key, prompt.number]));
    queue = keptOnes();
    adopt(told);
    byId("reviewer").value = reviewer;
    offer("concept", new Set(prompts.map((prompt) => prompt.concept)));
    const hash = new URLSearchParams(location.hash.slice(1));
    byId("concept").value = hash.get("concept") || "";
    offerFamilies();
    for (const id of filters) if (hash.get(id)) byId(id).value = hash.get(id);
    byId("filter-part").open = filters.some((id) => byId(id).value);
    const first = prompts.find((prompt) => placeOf(prompt) === hash.get("at"));
    tell();
    apply(first ? first.number : -1);
    const unjudged = listed.findIndex((number) => !mine(prompts[number])?.verdict);
    if (!first && unjudged > 0) { at = unjudged; show(); }
    send();
  };

  const MOVES = ["j", "k", "arrowright", "arrowdown", "arrowleft", "arrowup"];
  const KEYS = {
    a: () => judge("ACCEPT"), r: () => judge("REJECT"), u: undo, e: edit, m: masks,
    j: () => move(1), arrowright: () => move(1), arrowdown: () => move(1),
    k: () => move(-1), arrowleft: () => move(-1), arrowup: () => move(-1),
    f: () => { byId("filter-part").open = true; byId("concept").focus(); },
    "?": () => byId("help").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.keyCode === 229) return;
    if (byId("help").open) return;
    if (event.target === byId("edit-text")) {
      if (event.key === "Enter" || event.key === "Escape") {
        event.preventDefault();
        endEdit(event.key === "Enter");
      }
      return;
    }
    if (event.target.matches("select, input")) {
      byPointer = false;
      if (event.key === "Escape" && event.target === byId("reviewer")) event.target.value = reviewer;
      if (event.key === "Escape" || (event.key === "Enter" && event.target.matches("select"))) event.target.blur();
      return;
    }
    const action = /^[1-9]$/.test(event.key) ? () => toggle(Number(event.key) - 1) : KEYS[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    if (!event.repeat || MOVES.includes(event.key.toLowerCase())) action(); // a key held down decides once
  });
  let byPointer = false;
  const buttons = {
    accept: () => judge("ACCEPT"), reject: () => judge("REJECT"), undo, change: edit, masks,
    next: () => move(1), previous: () => move(-1), "help-button": () => byId("help").showModal(),
    "edit-save": () => {}, "edit-leave": () => {},
  };
  for (const [id, action] of Object.entries(buttons)) {
    byId(id).addEventListener("click", (event) => {
      if (!endEdit(id !== "edit-leave")) return;
      action();
      if (id !== "change" && event.detail) byId(id).blur(); // so that keys judge again after a pointer
    });
  }
  byId("edit").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("submit", (event) => { event.preventDefault(); byId("reviewer").blur(); });
  for (const id of filters) {
    byId(id).addEventListener("change", () => {
      if (id === "concept") offerFamilies();
      if (byPointer) byId(id).blur(); // so that keys judge again; who types an option's name is not done yet
      apply(current()?.number ?? -1);
    });
    byId(id).addEventListener("pointerdown", () => { byPointer = true; });
  }
  byId("reviewer").addEventListener("change", async () => {
    const name = byId("reviewer").value.trim();
    if (!name || name === reviewer) { byId("reviewer").value = reviewer; return; }
    reviewer = name;
    stored(() => localStorage.setItem("reviewer", JSON.stringify({ start, name })));
    await refresh();
    apply(current()?.number ?? -1);
  });
  byId("saved").addEventListener("click", () => {
    const [first] = lost;
    lost = [];
    tell();
    if (first?.number === undefined) return;
    if (!listed.includes(first.number)) listed.splice(at, 0, first.number);
    at = listed.indexOf(first.number);
    show();
  });
  window.addEventListener("beforeunload", (event) => { if (queue.length) event.preventDefault(); });
  window.addEventListener("resize", () => { const prompt = current(); if (ready(prompt)) render(prompt); });
  begin().catch((error) => { byId("saved").className = "failed"; byId("saved").textContent = `cannot load: ${error.message}`; });
})();
