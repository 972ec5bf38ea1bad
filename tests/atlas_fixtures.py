"""Atlases, and a browser for them, once for all tests."""

import pytest
from atlases import example, write_with_panels
from chromium import CHROMIUM, Page

from nstvis.units import atlas


@pytest.fixture(scope="session")
def given():
    """The table, patches and pictures of `folder`'s atlas; not to be changed."""
    return example()


@pytest.fixture(scope="session")
def folder(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas with a space # and %")
    atlas.write(folder, *given)
    return folder


@pytest.fixture(scope="session")
def panels(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("panels")
    write_with_panels(folder, given)
    return folder


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Chromium, such as Debian's package chromium")
    page = Page(tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


@pytest.fixture
def page(chromium):
    """A window of 1200 x 900; nothing may be complained about, or come from elsewhere."""
    chromium.window()
    chromium.events.clear()
    yield chromium
    assert chromium.problems() == []
