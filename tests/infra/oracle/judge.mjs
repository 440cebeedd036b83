// SPDX-License-Identifier: Apache-2.0
// Reads a JSON list of simulations, writes a JSON list of verdicts in the same order.
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const require = createRequire(process.argv[2] + '/')
const found = require.resolve('@cloud-copilot/iam-simulate')
const { runSimulation } = await import(pathToFileURL(found))

let text = ''
for await (const part of process.stdin) text += part
const out = []
for (const simulation of JSON.parse(text)) {
  const said = await runSimulation(simulation, {})
  out.push(said.resultType === 'error'
    ? { verdict: 'error', why: JSON.stringify(said.errors) }
    : { verdict: said.overallResult, ignored: (said.result ?? said.results?.[0])?.ignoredContextKeys ?? [] })
}
process.stdout.write(JSON.stringify(out))
