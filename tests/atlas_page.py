"""What tests see of the atlas's page, and do to it."""

PAPER = {"light": (252, 251, 249), "dark": (19, 19, 18)}
IN_LAYER = "document.querySelector('#unit').hidden"
HOVERING = "!document.querySelector('#hover').hidden"
COUNTED = "[...document.querySelectorAll('nav small')].every((x) => x.textContent)"


def status(page):
    return page.each("#status")[0]


def numbers(page):
    """The units in the order in which they are shown."""
    return [int(number) for number in page.each("#units b")]


def address(layer, unit=None):
    name = {"block/2 ü": "block%2F2%20%C3%BC"}.get(layer, layer)
    return f"#{name}" if unit is None else f"#{name}/{unit}"


def inside(box, columns, slot, gap=2):
    """Points of a patch: its middle, and two pixels inside each of its corners."""
    left, top, width, _ = box
    step = (width + gap) / columns
    left, top = left + slot % columns * step, top + slot // columns * step
    near, far = 2, step - gap - 3
    return [
        (left + x, top + y)
        for x, y in [
            (near, near),
            (near, far),
            (far, near),
            (far, far),
            (far / 2, far / 2),
        ]
    ]


def choose(page, menu, name):
    change = f"(x.value = '{name}', x.dispatchEvent(new Event('change')))"
    page.each(menu, change)


def search(page, wanted):
    page.js("document.querySelector('#query').value = ''")
    page.click("#query")
    page.call("Input.insertText", text=wanted)
