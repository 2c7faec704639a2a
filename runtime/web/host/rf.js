/**
 * Draws pictures and answers questions from an rf-export bundle, in a browser, without a server.
 *
 *     import { openBundle } from "./rf.js"; // or from "./client.js": the same in a worker, so that the page stays alive
 *     const pipeline = await openBundle("bundle");
 *     for await (const event of pipeline.draw({ prompt: "a red car", seed: 7 }))
 *       if (event.type === "picture") canvas.putImageData(new ImageData(event.rgba, event.width), 0, 0);
 *
 * docs/host.md has what it does and what it does not.
 */

import { Pipeline } from "./pipeline.js";

export { Conversation } from "./conversation.js";
export { RFError } from "./errors.js";
export { Pipeline } from "./pipeline.js";

export const openBundle = Pipeline.open;
