"""docs/settings.md says what the settings of the code say."""

import settings_page
from mlx_manager.mlx_server.config import MLXServerSettings


def test_the_page_is_what_the_settings_describe() -> None:
    assert settings_page.PAGE.read_text("utf-8") == settings_page.page(), "run python scripts/settings_page.py"


def test_every_setting_is_on_the_page() -> None:
    page = settings_page.page()
    assert [name for name in MLXServerSettings.model_fields if f"\n| `{name}` | " not in page] == []
