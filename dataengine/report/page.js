"use strict";
// The gallery. An image's cards are built when it comes near the window and dropped when it is far away, so that
// thousands of images cost no more than a few. All text is set as text, never as markup.
(() => {
  const data = document.getElementById("images");
  const images = JSON.parse(data.textContent);
  const folder = data.dataset.folder;
  const palette = data.dataset.palette.split(" ");
  const gallery = document.getElementById("gallery");
  const control = (id) => document.getElementById(id);
  const filters = ["concept", "family", "verdict", "kind", "text"].map(control);
  const SVG = "http://www.w3.org/2000/svg";

  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const draw = (name, attributes) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };

  // A picture that stands in the page becomes a blob once, so that its sixteen uses share one.
  const address = (image) => {
    if (!image.picture || image.address) return image.address || "";
    if (!image.picture.startsWith("data:")) return (image.address = `${folder}/${encodeURIComponent(image.picture)}`);
    const bytes = Uint8Array.from(atob(image.picture.split(",")[1]), (c) => c.charCodeAt(0));
    return (image.address = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" })));
  };

  const picture = (image, indices, numbers) => {
    const labels = image.regions.filter((region) => indices.includes(region.index)).map((region) => region.label);
    const svg = draw("svg", { class: "picture", viewBox: `0 0 ${image.width} ${image.height}`, role: "img" });
    svg.setAttribute("aria-label", `${image.name}: ${labels.join("; ")}`);
    if (image.picture) {
      svg.append(draw("image", { href: address(image), width: image.width, height: image.height }));
    }
    const shown = image.regions.filter((region) => indices.includes(region.index));
    for (const region of shown) {
      const colour = palette[region.index % palette.length];
      for (const line of ["case", "rim"]) svg.append(draw("path", { class: line, d: region.path }));
      svg.append(draw("path", { class: "edge", d: region.path, fill: colour, stroke: colour }));
    }
    for (const region of numbers ? shown : []) {
      const x = Math.min(Math.max(region.at[0], 12), image.width - 12);
      const y = Math.min(Math.max(region.at[1], 12), image.height - 12);
      const text = draw("text", { x, y });
      text.textContent = region.index;
      svg.append(text);
    }
    return svg;
  };

  const overview = (image) => {
    const box = make("div", "overview");
    box.append(picture(image, image.regions.map((region) => region.index), true));
    const words = make("div");
    const list = make("ol");
    for (const region of image.regions) {
      const entry = make("li");
      const swatch = make("span", "swatch", region.index);
      swatch.style.borderColor = palette[region.index % palette.length];
      entry.append(swatch, region.label);
      list.append(entry);
    }
    words.append(list);
    if (image.refused.length) {
      const details = make("details");
      details.append(make("summary", "quiet", `${image.refused.length} regions rejected`));
      const refused = make("ul");
      for (const [label, reason] of image.refused) refused.append(make("li", "", `${label}: ${reason}`));
      details.append(refused);
      words.append(details);
    }
    box.append(words);
    return box;
  };

  const card = (image, prompt) => {
    const figure = make("figure", `card ${prompt.accepted ? "ok" : "no"}`);
    const caption = make("figcaption");
    caption.append(make("div", "text", prompt.text));
    const family = prompt.family ? ` · ${prompt.family.replaceAll("_", " ")}` : "";
    const kind = prompt.negative ? "negative · " : "";
    caption.append(make("div", "meta", `${kind}${prompt.concept}${family}`));
    caption.append(make("div", "reason", `${prompt.accepted ? "ACCEPT" : "REJECT"}: ${prompt.reason || "no reason given"}`));
    for (const said of prompt.people) caption.append(make("div", "people", said));
    if (!prompt.negative) figure.append(picture(image, prompt.satisfying, false));
    figure.append(caption);
    return figure;
  };

  const fill = (section, image) => {
    const heading = make("h3", "", image.name);
    if (image.name !== image.run) heading.append(make("span", "quiet", ` ${image.run}`));
    section.replaceChildren(heading, overview(image));
    for (const accepted of [true, false]) {
      for (const negative of [false, true]) {
        const prompts = image.matching.filter((p) => p.accepted === accepted && p.negative === negative);
        if (!prompts.length) continue;
        const what = `${negative ? "Negatives" : "Prompts"} ${accepted ? "accepted" : "rejected"}: ${prompts.length}`;
        const cards = make("div", "cards");
        cards.append(...prompts.map((prompt) => card(image, prompt)));
        section.append(make("h4", accepted ? "ok" : "no", what), cards);
      }
    }
  };

  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !target.firstChild) {
        target.style.minHeight = "";
        fill(target, target.image);
      } else if (!isIntersecting && target.firstChild) {
        target.style.minHeight = `${target.offsetHeight}px`;
        target.replaceChildren();
      }
    }
  }, { rootMargin: "1200px" });

  for (const image of images) {
    image.section = make("section", "image");
    image.section.image = image;
    image.words = `${image.name} ${image.run} ${image.regions.map((region) => region.label).join(" ")}`.toLowerCase();
    for (const prompt of image.prompts) {
      prompt.words = `${prompt.text} ${prompt.reason} ${prompt.people.join(" ")}`.toLowerCase();
    }
  }

  // Filters.
  const fits = (prompt, image, [concept, family, verdict, kind, text]) =>
    (!concept || prompt.concept === concept) &&
    (!family || prompt.family === family) &&
    (!verdict || (verdict === "people" ? prompt.people.length > 0 : prompt.accepted === (verdict === "accepted"))) &&
    (!kind || prompt.negative === (kind === "negative")) &&
    (!text || prompt.words.includes(text) || image.words.includes(text));

  const apply = () => {
    const wanted = filters.map((filter) => filter.value.trim());
    wanted[4] = wanted[4].toLowerCase();
    const any = wanted.some(Boolean);
    let prompts = 0;
    const shown = [];
    for (const image of images) {
      near.unobserve(image.section);
      image.section.replaceChildren();
      image.matching = image.prompts.filter((prompt) => fits(prompt, image, wanted));
      if (any && !image.matching.length) continue;
      prompts += image.matching.length;
      image.section.style.minHeight = `${500 + 90 * image.matching.filter((prompt) => !prompt.negative).length}px`;
      shown.push(image.section);
    }
    gallery.replaceChildren(...shown);
    for (const section of shown) near.observe(section);
    control("shown").textContent = `${prompts.toLocaleString("en")} prompts of ${shown.length.toLocaleString("en")} images`;
  };

  const offerFamilies = () => {
    const concept = control("concept").value;
    const found = new Set();
    for (const image of images) {
      for (const prompt of image.prompts) if (!concept || prompt.concept === concept) found.add(prompt.family);
    }
    const options = [...found].filter(Boolean).sort().map((family) => {
      const option = make("option", "", family.replaceAll("_", " "));
      option.value = family;
      return option;
    });
    const all = make("option", "", "all");
    all.value = "";
    const before = control("family").value;
    control("family").replaceChildren(all, ...options);
    control("family").value = found.has(before) ? before : "";
  };

  let waiting = 0;
  for (const filter of filters) {
    filter.addEventListener("input", () => {
      if (filter.id === "concept") offerFamilies();
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        apply();
        if (gallery.getBoundingClientRect().top < 0) control("gallery-part").scrollIntoView();
      }, filter.id === "text" ? 150 : 0);
    });
  }
  control("masks").addEventListener("input", () => gallery.classList.toggle("no-masks", !control("masks").checked));
  control("filters").addEventListener("submit", (event) => event.preventDefault());
  offerFamilies();
  apply();
})();
