"""The picture of the notebook chat in chapter 08: the trained model in a real JupyterLab, photographed in Chromium.

    python tests/draw_chat.py          # after the course; writes nbs/figures/08_chat_widget.png
"""
import io
from pathlib import Path
from tempfile import TemporaryDirectory

from browser_toys import open_browser
from lab_toys import LabChat, jupyterlab, write_notebook
from PIL import Image
from playwright.sync_api import expect
from processes import gone_afterwards

from scclm.runs import run_path

PICTURE = Path(__file__).parent.parent/'nbs'/'figures'/'08_chat_widget.png'
CELL = """
from scclm.chat import ChatBot, chat_widget
view = chat_widget(ChatBot.from_dir())
view
"""
QUESTIONS = ('浙江省的省会是哪里？', '龘是什么意思？')


def photograph(url:str)->bytes:
    "Ask, turn a knob, and take the chat's picture: PNG at twice the size."
    with open_browser() as browser:
        chat = LabChat(browser, url, scale=2)
        for n, question in enumerate(QUESTIONS, 1):
            chat.ask(question)
            expect(chat.bubbles('bot')).to_have_count(n, timeout=60_000)
            expect(chat.button('发送')).to_be_enabled(timeout=60_000)
        chat.page.get_by_label('策略').select_option(label='采样 sampling')
        chat.page.mouse.move(5, 5)
        return chat.page.locator('.widget-vbox', has=chat.entry).first.screenshot()


def main():
    "64 colours are enough for it, and a tenth of the bytes."
    with gone_afterwards(), TemporaryDirectory() as home:
        write_notebook(Path(home)/'chat.ipynb', CELL)
        with jupyterlab(Path(home), SCCLM_RUNS=str(run_path().parent.absolute())) as url:
            picture = photograph(f'{url}/chat.ipynb')
    Image.open(io.BytesIO(picture)).convert('RGB').quantize(64).save(PICTURE, optimize=True)
    print(f'{PICTURE}: {PICTURE.stat().st_size/1000:.0f} kB')


if __name__ == '__main__': main()
