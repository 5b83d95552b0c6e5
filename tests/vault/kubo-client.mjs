// The official client of Kubo's RPC: node kubo-client.mjs URL FILE. It puts and pins the file's bytes as a DAG-CBOR block, gets
// them offline, asks for the pin, lets go of it and deletes the block: what a vault does, so that the requests can be compared.
import { readFileSync } from 'node:fs'
import { create } from 'kubo-rpc-client'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'

const [url, file] = process.argv.slice(2)
const block = readFileSync(file)
const cid = CID.createV1(0x71, await sha256.digest(block))
const client = create({ url, timeout: 5000 })
const stored = await client.dag.put(block, { storeCodec: 'dag-cbor', inputCodec: 'dag-cbor', hashAlg: 'sha2-256', pin: true })
await client.block.get(cid, { offline: true })
for await (const _ of client.pin.ls({ paths: [cid], type: 'recursive' }));
await client.pin.rm(cid)
for await (const _ of client.block.rm(cid, { force: true }));
console.log(JSON.stringify({ stored: stored.toString(), codec: raw.code }))
process.exit(0)
