const make = (name, more) => Object.assign(document.createElement(name), more)
const key = text => make('button', { type: 'button', textContent: text })

// Tables: a click on a column sorts by it, once more turns it round; cells without a value stay last.
for (const table of document.querySelectorAll('table.sortable')) {
  [...table.tHead.rows[0].cells].forEach((th, i) => {
    const button = key(th.textContent)
    if (!th.textContent) button.ariaLabel = 'name'
    th.replaceChildren(button)
    button.onclick = () => {
      const number = th.classList.contains('num'), down = th.ariaSort === (number ? null : 'ascending')
      const sign = down ? -1 : 1, text = row => row.cells[i].firstChild?.textContent ?? ''
      const value = row => number ? parseFloat(text(row).replaceAll(',', '').replace('\u2212', '-')) : text(row)
      const none = x => x === '' || x === '-' || Number.isNaN(x)
      const order = (a, b) => none(a) || none(b) ? none(a) - none(b)
        : sign * (number ? a - b : a.localeCompare(b, 'en', { numeric: true }))
      for (const other of table.tHead.rows[0].cells) other.ariaSort = null
      th.ariaSort = down ? 'descending' : 'ascending'
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => order(value(a), value(b))))
    }
  })
}

// Films: they play while they are seen, unless they were paused; a slider goes frame by frame; 3x shows every pixel.
const still = matchMedia('(prefers-reduced-motion: reduce)').matches
const seen = new IntersectionObserver(entries => entries.forEach(({ target, isIntersecting }) => {
  if (isIntersecting && target.dataset.wanted) target.play().catch(() => {})
  else target.pause()
}))
for (const film of document.querySelectorAll('.film')) {
  const video = film.querySelector('video'), { frames, fps } = film.dataset
  const bytes = Uint8Array.from(atob(video.src.split(',')[1]), c => c.charCodeAt(0))
  video.src = URL.createObjectURL(new Blob([bytes], { type: 'video/mp4' })) // some phones play no data: address
  video.controls = false
  const keys = make('div', { className: 'keys' }), play = key(''), big = key('3\u00d7')
  const slider = make('input', { type: 'range', min: 1, max: frames, value: 1, ariaLabel: 'frame' })
  const told = make('output'), show = () => {
    play.textContent = video.dataset.wanted ? 'Pause' : 'Play'
    if (document.activeElement !== slider) slider.value = Math.floor(video.currentTime * fps + 1e-3) + 1
    told.textContent = `frame ${slider.value} of ${frames}`
  }
  const want = yes => {
    video.dataset.wanted = yes ? 'yes' : ''
    if (yes) slider.blur(), video.play().catch(() => {})
    else video.pause()
    show()
  }
  play.onclick = video.onclick = () => want(!video.dataset.wanted)
  slider.oninput = () => {
    const time = (slider.value - .5) / fps
    want(false), video.currentTime = time
  }
  slider.onchange = show
  big.title = 'every pixel three times as wide'
  big.onclick = () => big.ariaPressed = film.classList.toggle('big')
  video.ontimeupdate = video.onseeked = show
  const tick = () => { show(), video.requestVideoFrameCallback?.(tick) }
  tick()
  keys.append(play, slider, told, big)
  film.querySelector('.screen').after(keys)
  const wide = () => { big.hidden = !film.classList.contains('big') && video.clientWidth >= 3 * video.width }
  addEventListener('resize', wide), wide()
  want(!still), seen.observe(video)
}

// Commands can be copied.
for (const pre of document.querySelectorAll('main section > pre')) {
  const copy = key('Copy')
  copy.onclick = async () => {
    try { await navigator.clipboard.writeText(pre.textContent), copy.textContent = 'Copied' }
    catch { getSelection().selectAllChildren(pre) }
  }
  pre.after(copy)
}

if (innerWidth < 1100) for (const d of document.querySelectorAll('nav details')) d.open = d.querySelectorAll('li').length < 5
