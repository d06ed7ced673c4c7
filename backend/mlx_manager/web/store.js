// Chats in the browser's IndexedDB. Where it is missing, as in some private windows, they last as long as the page.

const opened = new Promise((resolve) => {
  const opening = indexedDB.open("mlx-manager", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("chats", { keyPath: "id" });
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => resolve(null);
}).catch(() => null);
const unsaved = new Map();

export async function allChats() {
  const chats = (await inStore("readonly", (store) => store.getAll())) ?? [...unsaved.values()];
  return chats.sort((one, other) => other.updated - one.updated);
}

export function saveChat(chat) {
  unsaved.set(chat.id, chat);
  return inStore("readwrite", (store) => store.put(chat));
}

export function deleteChat(id) {
  unsaved.delete(id);
  return inStore("readwrite", (store) => store.delete(id));
}

async function inStore(mode, action) {
  const database = await opened;
  if (database === null) return undefined;
  return new Promise((resolve, reject) => {
    const asked = action(database.transaction("chats", mode).objectStore("chats"));
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}
