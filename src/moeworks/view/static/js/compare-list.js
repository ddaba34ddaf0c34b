// A list of many blocks of unequal height that draws only those that are seen, and measures them as they come.

import { Component } from "preact";
import { html } from "moeworks/parts";

const AROUND = 600; // pixels drawn above and below what is seen

/**
 * Props: `count` blocks, `estimate` of a block's height in pixels, `draw(place)`, `label`, and `handle`, whose
 * `current` becomes the list, with the method `reveal(place)`.
 */
export class VirtualList extends Component {
  state = { from: 0, to: 20 };
  heights = /** @type {Map<number, number>} */ (new Map());
  box = /** @type {HTMLElement | null} */ (null);
  body = /** @type {HTMLElement | null} */ (null);

  componentDidMount() {
    if (this.props.handle) this.props.handle.current = this;
    this.watch = new ResizeObserver(() => {
      if (this.box && this.box.clientWidth !== this.width) {
        this.width = this.box.clientWidth;
        this.heights.clear(); // lines break elsewhere now
      }
      this.look();
    });
    if (this.box) this.watch.observe(this.box);
    this.look();
  }

  componentWillUnmount() {
    this.watch?.disconnect();
  }

  componentDidUpdate() {
    this.measure();
  }

  /** @param {number} place the top of a block, in pixels: measured where it was seen, estimated elsewhere */
  top(place) {
    let top = place * this.mean();
    for (const [at, height] of this.heights) if (at < place) top += height - this.mean();
    return top;
  }

  mean() {
    if (this.average !== undefined && this.averaged === this.heights.size) return this.average;
    const sum = [...this.heights.values()].reduce((total, one) => total + one, 0);
    this.averaged = this.heights.size;
    this.average = this.heights.size ? sum / this.heights.size : this.props.estimate;
    return this.average;
  }

  /** Take the heights of what is drawn; what is seen stays where it is, or what was asked for comes to its place. */
  measure() {
    if (!this.box) return;
    const anchor = this.placeAt(this.box.scrollTop);
    const offset = this.box.scrollTop - this.top(anchor);
    let changed = false;
    for (const child of this.body?.children ?? []) {
      const place = Number(child.dataset.place);
      const height = child.getBoundingClientRect().height;
      if (Math.abs((this.heights.get(place) ?? -1) - height) > 0.5) {
        this.heights.set(place, height);
        this.average = undefined;
        changed = true;
      }
    }
    if (!changed) return;
    this.forceUpdate(); // places follow from heights
    if (this.target !== undefined) this.aim();
    else if (this.box.scrollTop > 0) this.box.scrollTop = this.top(anchor) + offset;
    this.look();
  }

  look() {
    if (!this.box) return;
    const { scrollTop, clientHeight } = this.box;
    const from = this.placeAt(scrollTop - AROUND);
    const to = Math.min(this.placeAt(scrollTop + clientHeight + AROUND) + 1, this.props.count);
    const shape = this.heights.size;
    if (from !== this.state.from || to !== this.state.to || shape !== this.state.shape) this.setState({ from, to, shape });
  }

  /** @param {number} y @returns {number} the block at a height */
  placeAt(y) {
    let low = 0;
    let high = Math.max(this.props.count - 1, 0);
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.top(middle) <= y) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** @param {number} place bring a block into the middle of what is seen, and keep it there until somebody scrolls */
  reveal(place) {
    this.target = place;
    this.aim();
  }

  aim() {
    if (!this.box || this.target === undefined) return;
    const height = this.heights.get(this.target) ?? this.mean();
    this.box.scrollTop = Math.max(0, this.top(this.target) - Math.max(0, this.box.clientHeight - height) / 2);
    this.look();
  }

  render({ count, draw, label }, { from, to }) {
    const leave = () => {
      this.target = undefined;
    };
    const last = Math.min(to, count);
    const places = Array.from({ length: Math.max(0, last - from) }, (_, i) => from + i);
    return html`
      <div class="virtual" tabindex="0" role="region" aria-label=${label} ref=${(/** @type {any} */ element) => (this.box = element)} onScroll=${() => this.look()}
        onWheel=${leave} onPointerDown=${leave} onKeyDown=${leave} onTouchMove=${leave}>
        <div class="virtual-size" style=${{ height: `${Math.ceil(this.top(count))}px` }}>
          <div class="virtual-seen" style=${{ transform: `translateY(${this.top(from)}px)` }} ref=${(/** @type {any} */ element) => (this.body = element)}>
            ${places.map((place) => html`<div key=${place} data-place=${place}>${draw(place)}</div>`)}
          </div>
        </div>
      </div>
    `;
  }
}
