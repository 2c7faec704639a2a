/**
 * What the page asks of whatever draws: a server (engine-http.js), or the browser itself. The page knows no more.
 *
 * A module that can draw exports `createEngine()`, which gives an Engine. Pictures are Blobs of image files.
 *
 * @typedef {object} Info
 * @property {string} about         What it is, in a few words.
 * @property {number} cell          Side in pixels of what one representation token stands for.
 * @property {number} maxGrid       Tokens of a side, at most.
 * @property {number} maxTokens     Tokens of a picture, at most.
 * @property {number} width         The default, in pixels.
 * @property {number} height
 * @property {number} maxSteps
 * @property {Object<string, {steps: number, guidance: number}>} plans What it can draw by; "paper" is always there.
 * @property {boolean} answers      Whether it answers questions.
 * @property {?string[]} words      All that it knows, where these are few.
 *
 * @typedef {object} DrawRequest
 * @property {string} prompt
 * @property {number} seed
 * @property {?number} [width]
 * @property {?number} [height]
 * @property {string} plan
 * @property {number} [steps]       Where it is not the plan's.
 * @property {number} [guidance]    Likewise.
 * @property {number} previews      So many are wanted.
 * @property {?object} [tokens]     Those of a picture that was drawn, to draw from.
 * @property {string[]} [edits]     Changes of them, in the language of `rf-export generate --edit`.
 *
 * @typedef {{type: "progress", stage: "tokens"|"pixels", step: number, steps: number, code?: number}
 *   | {type: "preview", step: number, image: Blob}
 *   | {type: "picture", image: Blob, tokens: object, seed: number}} DrawEvent
 *
 * @typedef {{type: "word", text: string}} AskEvent
 *
 * @typedef {object} Engine
 * @property {(onLoading: (loaded: number, total: number) => void) => Promise<Info>} info Ready to draw then; tells the
 *   bytes that it loads.
 * @property {(request: DrawRequest, signal: AbortSignal) => AsyncGenerator<DrawEvent>} draw
 * @property {(image: Blob, question: string, signal: AbortSignal) => AsyncGenerator<AskEvent>} ask
 * @property {(key: string) => void} [useKey]
 */

/** Something that the user of the page can read and put right. */
export class EngineError extends Error {
  /**
   * @param {string} message A sentence.
   * @param {"input"|"busy"|"key"|"unreachable"|"failed"} kind
   */
  constructor(message, kind) {
    super(message);
    this.kind = kind;
  }
}
