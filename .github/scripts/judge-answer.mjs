// Prints the answer in a file and judges it: 0 fine, 3 counts errors, 4 not a JSON object.
//
// Always printed as JSON, so that no line of an answer can begin with `::`, a workflow command.
import { readFileSync } from 'node:fs';

const MOST_CHARACTERS = 200_000; // a job summary takes 1 MiB

const text = readFileSync(process.argv[2], 'utf8');
const print = (value) => {
  const shown = JSON.stringify(value, null, 2);
  const cut = shown.length > MOST_CHARACTERS;
  process.stdout.write(cut ? `${shown.slice(0, MOST_CHARACTERS)}\n(suite coupée)\n` : `${shown}\n`);
};

/** Is there a count of errors above zero, at whatever depth? */
function countsErrors(value) {
  if (value === null || typeof value !== 'object') return false;
  return Object.entries(value).some(
    ([key, inner]) => (key === 'errors' && typeof inner === 'number' && inner > 0) || countsErrors(inner),
  );
}

let answer;
try {
  answer = JSON.parse(text);
} catch {
  answer = undefined;
}
if (answer === null || typeof answer !== 'object' || Array.isArray(answer)) {
  print(text.slice(0, 2000));
  process.exitCode = 4;
} else {
  print(answer);
  process.exitCode = countsErrors(answer) ? 3 : 0;
}
