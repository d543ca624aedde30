// A person in Chromium who takes the same few steps at several addresses.
//
//   NODE_PATH=tests/.cache/npm/node_modules node person.js VISITS
//
// VISITS is JSON: a list of {"label", "steps": [[NAME, ARGUMENT...], ...]}. Each visit has a browser context of its own.
// Prints one line for each failure and `N steps`; exits 1 when one failed.
"use strict";

const fs = require("node:fs");
const { chromium } = require("playwright-core");

const visits = JSON.parse(process.argv[2]);
const axe = () => fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
let failed = 0;
let count = 0;

function expect(label, what, holds, seen) {
  count += 1;
  if (!holds) {
    failed += 1;
    console.log(`FAILED: ${label}: ${what}: ${JSON.stringify(seen)}`);
  }
}

const steps = {
  goto: ({ page }, url) => page.goto(url),
  login: async ({ page }, name, password) => {
    await page.fill("#username", name);
    await page.fill("#password", password);
    await Promise.all([page.waitForNavigation(), page.click("button[type=submit]")]);
  },
  // The address, its fragment included.
  url: async ({ page, label }, url) => {
    await page.waitForURL(url, { timeout: 10000 }).catch(() => {});
    expect(label, `the address is ${url}`, page.url() === url, page.url());
  },
  text: async ({ page, label }, text) => {
    const body = await page.innerText("body");
    expect(label, `the page says ${text}`, body.includes(text), body);
  },
  value: async ({ page, label }, selector, value) => {
    const seen = await page.inputValue(selector);
    expect(label, `${selector} holds ${value}`, seen === value, seen);
  },
  focus: async ({ page, label }, id) => {
    const seen = await page.evaluate(() => document.activeElement.id);
    expect(label, `${id} has the focus`, seen === id, seen);
  },
  fill: ({ page }, selector, text) => page.fill(selector, text),
  check: ({ page }, selector) => page.check(selector),
  click: ({ page }, selector) => Promise.all([page.waitForNavigation(), page.click(selector)]),
  reload: ({ page }) => page.reload(),
  // As if the login had ended meanwhile: something else in this browser logs out.
  logoutElsewhere: async ({ context }, url) => {
    await context.request.post(url);
  },
  // Follows a link that opens a tab, logs in there, and closes it.
  loginElsewhere: async ({ context, page }, selector, name, password) => {
    const [other] = await Promise.all([context.waitForEvent("page"), page.click(selector)]);
    await other.waitForLoadState();
    await steps.login({ page: other }, name, password);
    await other.close();
  },
  socket: async ({ page, label }, path, opens) => {
    const seen = await page.evaluate((path) => new Promise((resolve) => {
      const socket = new WebSocket(location.origin.replace("http", "ws") + path);
      socket.onopen = () => resolve(true);
      socket.onerror = () => resolve(false);
    }), path);
    expect(label, `a socket to ${path} ${opens ? "opens" : "is refused"}`, seen === opens, seen);
  },
  cookie: async ({ context, label }, name, lasts) => {
    const cookie = (await context.cookies()).find((cookie) => cookie.name === name);
    expect(label, `${name} ${lasts ? "outlives" : "ends with"} the browser`, cookie && (cookie.expires > 0) === lasts, cookie);
  },
  noCookie: async ({ context, label }, name) => {
    const cookie = (await context.cookies()).find((cookie) => cookie.name === name);
    expect(label, `there is no ${name}`, cookie === undefined, cookie);
  },
  // Nothing sticks out sideways, and axe finds nothing.
  sound: async ({ page, label }) => {
    const [inside, outside] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
    expect(label, "nothing sticks out", inside <= outside, [inside, outside]);
    await page.evaluate(axe());
    const found = await page.evaluate(() => window.axe.run());
    const faults = found.violations.map((fault) => [fault.id, fault.nodes.map((node) => node.html)]);
    expect(label, "axe finds nothing", faults.length === 0, faults);
  },
  shoot: ({ page }, file) => page.screenshot({ path: file, fullPage: true }),
};

async function main() {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP *.test 127.0.0.1",
    ],
  });
  try {
    for (const { label, options, steps: list } of visits) {
      const context = await browser.newContext({ ignoreHTTPSErrors: true, bypassCSP: false, ...options });
      const page = await context.newPage();
      for (const [name, ...rest] of list) {
        try {
          await steps[name]({ context, page, label }, ...rest);
        } catch (error) {
          expect(label, `${name} ${JSON.stringify(rest)}`, false, String(error).slice(0, 300) + " at " + page.url());
          break;
        }
      }
      await context.close();
    }
  } finally {
    await browser.close();
  }
}

main()
  .catch((error) => {
    failed += 1;
    console.log(`FAILED: ${error.stack}`);
  })
  .finally(() => {
    console.log(`${count} steps, ${failed} failed`);
    process.exit(failed === 0 && count > 0 ? 0 : 1);
  });
