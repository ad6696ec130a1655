/** Photos to try the page with, for whoever has none at hand; samples/LICENSES.md says where each is from. */

import { element } from "./dom.js";

const SAMPLES = [
  {
    file: "golf-ball.jpg",
    name: "Golf ball",
    alt: "A golf ball on grass",
    credit: "rendered for this project, MIT",
    plain: true, // one thing on its own: nothing for a model that looks at scenes
  },
  { file: "cat.jpg", name: "Cat", alt: "The face of a tabby cat", credit: "Stefan van der Walt, CC0" },
  { file: "cup.jpg", name: "Cup", alt: "A red cup of coffee on a wooden table", credit: "Rachel Michetti, CC0" },
  {
    file: "aeroplane.jpg",
    name: "Aeroplane",
    alt: "People in front of an old biplane, in black and white",
    credit: "The Commons on Flickr, no known copyright restrictions",
  },
  {
    file: "street.jpg",
    name: "Street",
    alt: "A paved street between old brick houses",
    credit: "contributors of OpenCV, Apache-2.0",
  },
];

/**
 * A button for each sample, of which `scenes` leaves out what is no scene; it gives its File to `take` or what went
 * wrong to `fail`. Below them stands whose photos they are.
 */
export function sampleButtons(scenes, take, fail) {
  const samples = SAMPLES.filter(({ plain }) => !(scenes && plain));
  const buttons = samples.map((sample) => {
    const picture = element("img", { src: `page/${sample.file}`, alt: sample.alt, width: 96, height: 72 });
    const button = element("button", { type: "button", class: "sample", title: sample.credit }, picture);
    button.addEventListener("click", () => fetchSample(sample).then(take, fail));
    return button;
  });
  const credits = samples.map(({ name, credit }) => `${name}: ${credit}`).join(". ");
  return [
    element("p", { class: "muted", id: "samples-title" }, "or try one of these"),
    element("div", { class: "samples", role: "group", "aria-labelledby": "samples-title" }, buttons),
    element("p", { class: "muted credits" }, `${credits}.`),
  ];
}

async function fetchSample({ file }) {
  const response = await fetch(`page/${file}`);
  if (!response.ok) throw new Error(`The sample ${file} cannot be had: the server answered ${response.status}.`);
  return new File([await response.blob()], file, { type: "image/jpeg" });
}
