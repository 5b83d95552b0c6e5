// IPFS's own reader of CAR streams over one that a fog node wrote, on standard input: prints its version, its roots and, for each
// block, its identifier and whether the bytes hash to it. It runs where js-ipfs is installed.
import { CarReader } from '@ipld/car'
import { sha256 } from 'multiformats/hashes/sha2'

const parts = []
for await (const part of process.stdin) parts.push(part)
const reader = await CarReader.fromBytes(Buffer.concat(parts))
const blocks = []
for await (const { cid, bytes } of reader.blocks()) {
  const digest = await sha256.digest(bytes)
  blocks.push({ cid: cid.toString(), bytes: bytes.length, matches: Buffer.compare(digest.digest, cid.multihash.digest) === 0 })
}
const roots = (await reader.getRoots()).map(String)
console.log(JSON.stringify({ version: reader.version, roots, blocks }))
