// Calls to the gateway. The key stays in this tab's session storage and in the header of each call.

const STORED = "feedloom.key";

export class Failure extends Error {
  constructor(status, message, code = null, param = null) {
    super(message);
    Object.assign(this, { status, code, param });
  }
}

export const session = {
  get key() {
    return sessionStorage.getItem(STORED);
  },
  set key(value) {
    sessionStorage.setItem(STORED, value);
  },
  forget() {
    sessionStorage.removeItem(STORED);
  },
};

async function failure(response) {
  let said = null;
  try {
    said = (await response.json()).error;
  } catch {
    // A proxy in between answers with something else.
  }
  return new Failure(
    response.status,
    said?.message ?? `the gateway answered ${response.status} without a reason`,
    said?.code, said?.param,
  );
}

// The response of a call that went well; raises Failure otherwise, also when nobody answers.
export async function request(path, { body, signal } = {}) {
  const headers = { Authorization: `Bearer ${session.key}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "omit",
      cache: "no-store",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "the gateway does not answer: is it running, and is the network up?");
  }
  if (response.ok) return response;
  const refused = await failure(response);
  if (response.status === 401) {
    document.dispatchEvent(new CustomEvent("signed-out", { detail: refused.message }));
  }
  throw refused;
}

export async function get(path) {
  return (await request(`api/${path}`)).json();
}

export async function post(path, body) {
  return (await request(`api/${path}`, { body })).json();
}
