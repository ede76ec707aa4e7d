// graphile-worker with its defaults: waits for a word on its standard input, drains its queue, says how long that took.
import { createInterface } from "node:readline";
import { runOnce, Logger } from "graphile-worker";

const quiet = new Logger(() => () => {});
const connectionString = process.argv[2];
for await (const _ of createInterface({ input: process.stdin })) {
  const since = process.hrtime.bigint();
  await runOnce({ connectionString, logger: quiet, taskList: { nothing: async () => {} } });
  console.log(Number(process.hrtime.bigint() - since) / 1e9);
}
