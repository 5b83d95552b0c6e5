#!/usr/bin/env node
// Signs one body temperature as JSON and publishes it: JavaScript with the npm package `mqtt` and node:crypto.
//
// publish.js HOST PORT CA_FILE USER PASSWORD_FILE GATEWAY DEVICE KEY_FILE BOOT SEQ CELSIUS [NETWORK READING_KEY]
// Prints what the gateway answered; exits 0 if it has the reading, 1 if it refused it, 75 if it is to be sent again.
// With NETWORK and READING_KEY it is sealed. A real device keeps BOOT, SEQ and what is unanswered in flash, says `up_ms` on `state`
// when it connects, and obeys `cmd`, as docs/bridges/homeassistant.py does (docs/DEVICES.md).
"use strict";

const { createPrivateKey, sign } = require("node:crypto");
const { readFileSync } = require("node:fs");
const mqtt = require("mqtt");
const { seal } = require("./seal.js");

const [HOST, PORT, CA_FILE, USER, PASSWORD_FILE, GATEWAY, DEVICE, KEY_FILE, BOOT, SEQ, CELSIUS, ...SEAL_TO] = process.argv.slice(2);
const TOPIC = `vitalfog/v1/${GATEWAY}/${DEVICE}/reading`;
const TAKEN = [0x00, 0x10];
const REFUSED = [0x87, 0x90, 0x99];

/** The message: what is signed is the domain, a line feed, and exactly the text that is sent. */
function signed() {
  const reading = JSON.stringify({
    v: 1,
    device: DEVICE,
    boot: BOOT,
    seq: Number(SEQ),
    up_ms: Math.round(process.uptime() * 1000),
    wall: Date.now(),
    time_quality: "synced",
    observations: [{ code: "8310-5", value: Number(CELSIUS), unit: "Cel" }],
  });
  const key = createPrivateKey(readFileSync(KEY_FILE));
  const signature = sign(null, Buffer.from(`vitalfog/reading/v1\n${reading}`), key).toString("base64");
  return `{"reading":${reading},"signature":"${signature}"}`;
}

function end(client, code, text) {
  console.log(code === undefined ? text : `0x${code.toString(16).padStart(2, "0")} ${text}`);
  process.exitCode = TAKEN.includes(code) ? 0 : REFUSED.includes(code) ? 1 : 75;
  client.end(true);
}

const client = mqtt.connect(`mqtts://${HOST}:${PORT}`, {
  protocolVersion: 5,
  clientId: USER,
  username: USER,
  password: readFileSync(PASSWORD_FILE, "utf8").trim(),
  ca: readFileSync(CA_FILE),
  rejectUnauthorized: true,
  connectTimeout: 15000,
  reconnectPeriod: 0,
});
const tooLong = setTimeout(() => end(client, undefined, "no answer"), 15000);
let sentence;
client.on("packetreceive", (packet) => (sentence = packet.properties?.reasonString ?? sentence));

client.on("connect", () => {
  const message = SEAL_TO.length ? seal(...SEAL_TO, TOPIC, signed()) : signed();
  const options = { qos: 1, properties: { contentType: SEAL_TO.length ? "application/cbor" : "application/json" } };
  client.publish(TOPIC, message, options, (error, packet) => {
    clearTimeout(tooLong);
    // The library makes an error of each reason code from 0x80 on.
    const code = error ? error.code : packet.reasonCode ?? 0;
    end(client, code, error ? (sentence ?? error.message) : "taken");
  });
});
client.on("error", (error) => {
  clearTimeout(tooLong);
  end(client, error.code >= 0x80 ? error.code : undefined, error.message);
});
