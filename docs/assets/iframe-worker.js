// A page that is opened from a disk may not start a worker, which the search runs in: there a hidden frame stands in.
if (location.protocol === "file:") {
  self.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.title = "search"
      document.body.appendChild(frame)
      this.waiting = []
      this.ready = false
      const inside = frame.contentWindow
      this.inside = inside
      // The worker speaks by postMessage and imports by importScripts: here one dispatches, one adds script tags.
      inside.postMessage = data => this.say(data)
      inside.importScripts = (...addresses) =>
        addresses.reduce((before, one) => before.then(() => this.load(one)), Promise.resolve())
      this.load(address).then(() => {
        this.ready = true
        this.waiting.forEach(data => this.postMessage(data))
      })
    }
    load(address) {
      return new Promise((done, failed) => {
        const script = this.inside.document.createElement("script")
        script.src = new URL(address, document.baseURI).href
        script.onload = done
        script.onerror = failed
        this.inside.document.body.appendChild(script)
      })
    }
    say(data) {
      const event = new MessageEvent("message", { data })
      this.dispatchEvent(event)
      if (this.onmessage) this.onmessage(event)
    }
    postMessage(data) {
      if (this.ready) this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }))
      else this.waiting.push(data)
    }
    terminate() {
      this.inside.frameElement.remove()
    }
  }
}
