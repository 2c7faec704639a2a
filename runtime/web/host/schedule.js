/** The times of the Euler steps; see runtime/schedule.py. Knows nothing of graphs. */

/**
 * From 0 (noise) to 1 (the picture).
 *
 * @param {number} numSteps @param {number} numPatches @param {number} shift
 * @param {?number} [basePatches] Where the shift is as given; null: at every size.
 */
export function timesteps(numSteps, numPatches, shift, basePatches) {
  const s = shift * Math.sqrt(numPatches / (basePatches ?? numPatches));
  const times = Float32Array.from({ length: numSteps + 1 }, (_, index) => {
    const sigma = 1 - index / numSteps;
    return 1 - (s * sigma) / (1 + (s - 1) * sigma);
  });
  times[0] = 0, times[numSteps] = 1; // exact, whatever the rounding
  return times;
}
