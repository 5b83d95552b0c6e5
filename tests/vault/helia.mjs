// Helia as a client of a fog node: node helia.mjs GATEWAY TOKEN-FILE CID [CID ..]. It fetches each block from the gateway alone,
// by its own rules, checks it by its own hash, and prints a line of JSON for each: its length, or why there is none. Of the root of a
// file it fetches all blocks, and says the file's length and SHA-256.
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createHeliaLight } from 'helia'
import { withHTTP } from '@helia/http'
import { fallbackRouter } from '@helia/fallback-router'
import * as dagPB from '@ipld/dag-pb'
import { UnixFS } from 'ipfs-unixfs'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'

const [gateway, tokenFile, ...cids] = process.argv.slice(2)
const authorization = `Bearer ${readFileSync(tokenFile, 'utf8').trim()}`
// Helia does not end a search that has routers of last resort alone: ours is one of the first.
const only = fallbackRouter({ gateways: [gateway] })
const light = createHeliaLight()
light.addRouter({ name: 'fog-node', findProviders: (cid, options) => only.findProviders(cid, options) })
const helia = await withHTTP(light, {
  delegatedRouters: [],
  recursiveGateways: [],
  allowLocal: true,
  allowInsecure: true,
  transformRequestInit: (init) => ({ ...init, headers: { ...init.headers, authorization } })
}).start()
const fetched = async (cid) => {
  const parts = []
  for await (const part of await helia.blockstore.get(cid, { signal: AbortSignal.timeout(20000) })) parts.push(part)
  return Buffer.concat(parts)
}
// The content below a block, leaf by leaf, by IPFS's own readers of nodes and files.
const content = async function * (cid, block) {
  if (cid.code !== dagPB.code) return yield block
  const node = dagPB.decode(block)
  const file = UnixFS.unmarshal(node.Data)
  if (file.type !== 'file' || file.blockSizes.length !== node.Links.length) throw new Error('no file')
  for (const link of node.Links) yield * content(link.Hash, await fetched(link.Hash))
}
for (const text of cids) {
  const cid = CID.parse(text)
  let told
  try {
    const block = await fetched(cid)
    // Once more, apart from what Helia does inside.
    const digest = await sha256.digest(block)
    told = { cid: text, bytes: block.length, matches: Buffer.compare(digest.bytes, cid.multihash.bytes) === 0 }
    if (cid.code === dagPB.code) {
      const hash = createHash('sha256')
      let bytes = 0
      for await (const part of content(cid, block)) {
        bytes += part.length
        hash.update(part)
      }
      told.file = { bytes, sha256: hash.digest('hex') }
    }
  } catch (error) {
    told = { cid: text, refused: [error, ...(error.errors ?? []), error.cause].filter(Boolean).map(String).join('; ') }
  }
  console.log(JSON.stringify(told))
}
await helia.stop()
process.exit(0)
