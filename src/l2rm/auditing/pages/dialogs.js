// Help, export, and the search for another image.

import { get, imageURL } from "./outbox.js";
import { byId, element, thousands } from "./view.js";

export function makeDialogs(summary, choose) {
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // beside it
    });
  }
  const openExport = makeExport(summary);
  const pick = makePicker(choose);
  return { help: () => byId("help").showModal(), openExport, pick, open: () => Boolean(document.querySelector("dialog[open]")) };
}

function makeExport(summary) {
  const chosen = () => document.querySelector('input[name="what"]:checked').value;
  const adapt = () => {
    byId("form").disabled = !["decisions", "pairs"].includes(chosen());
    byId("undecided").disabled = chosen() === "decisions";
    byId("export-status").textContent = "";
  };
  if (!summary.has_index) {
    document.querySelector('input[value="index"]').disabled = true;
    byId("index-why").textContent = " (this audit does not tell how the data count their images)";
  }
  for (const input of document.querySelectorAll('input[name="what"]')) input.addEventListener("change", adapt);
  adapt();
  byId("download").addEventListener("click", async () => {
    const button = byId("download");
    button.disabled = true;
    byId("export-status").textContent = "Writing …";
    try {
      const parameters = { what: chosen(), form: byId("form").value, undecided: byId("undecided").value };
      const response = await get("export", parameters);
      const disposition = response.headers.get("Content-Disposition") ?? "";
      const name = /filename="([^"]+)"/.exec(disposition)?.[1] ?? chosen();
      const address = URL.createObjectURL(await response.blob());
      element("a", { href: address, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60000);
      const note = response.headers.get("L2rm-Note");
      byId("export-status").textContent = `${name}: ${thousands(Number(response.headers.get("L2rm-Rows")))} rows${note ? `; ${note}` : ""}`;
    } catch (error) {
      byId("export-status").textContent = `Not exported: ${error.message}`;
    }
    button.disabled = false;
  });
  return () => {
    adapt();
    byId("export").showModal();
  };
}

function makePicker(choose) {
  let asked = 0;
  let current = null;

  async function search() {
    const words = byId("picker-words").value.trim();
    const mine = ++asked;
    if (!words) {
      byId("picker-images").replaceChildren();
      byId("picker-status").textContent = "Type a word.";
      return;
    }
    byId("picker-status").textContent = "Searching …";
    try {
      const found = await (await get("images", { words })).json();
      if (mine === asked) show(found.filter((image) => image.image !== current.given.image));
    } catch (error) {
      if (mine === asked) byId("picker-status").textContent = error.message;
    }
  }

  function show(found) {
    byId("picker-status").textContent = found.length ? `${found.length} images; click the one that fits.` : "No image has these words.";
    byId("picker-images").replaceChildren(
      ...found.map((image) => {
        const button = element("button", { type: "button" });
        button.append(
          element("img", { src: imageURL(image.image, "small"), alt: `image ${image.name}`, loading: "lazy" }),
          element("span", { textContent: image.captions[0] ?? image.name, dir: "auto" }),
        );
        button.addEventListener("click", () => {
          byId("picker").close();
          choose(current, image);
        });
        const item = element("li", {});
        item.append(button);
        return item;
      }),
    );
  }

  let timer;
  byId("picker-words").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return; // which only empties a search field
    event.preventDefault();
    byId("picker").close();
  });
  byId("picker-words").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, 200);
  });
  return (pair) => {
    current = pair;
    byId("picker-caption").textContent = pair.caption;
    byId("picker-words").value = longest(pair.caption);
    byId("picker").showModal();
    byId("picker-words").select();
    search();
  };
}

function longest(caption) {
  return caption.split(/[^\p{L}\p{N}]+/u).reduce((best, word) => (word.length > best.length ? word : best), "").slice(0, 200);
}
