"""Word problems of one step in twelve languages: `{a}` and `{b}` are numbers, `{c}` their sum, difference or product.

Needs nothing. Run by `python -m recipes.lab.corpus OUT --only arithmetic`.
"""

from __future__ import annotations

__all__ = ["PROBLEMS"]

PROBLEMS = {
    "en": (
        "Anna has {a} apples. She buys {b} more. Now she has {c} apples.",
        "There are {a} birds in the tree. {b} fly away. {c} birds are left.",
        "A box holds {a} pencils. {b} boxes hold {c} pencils.",
    ),
    "de": (
        "Anna hat {a} Äpfel. Sie kauft {b} dazu. Jetzt hat sie {c} Äpfel.",
        "Im Baum sitzen {a} Vögel. {b} fliegen weg. Es bleiben {c} Vögel.",
        "In einer Schachtel sind {a} Stifte. In {b} Schachteln sind {c} Stifte.",
    ),
    "fr": (
        "Anna a {a} pommes. Elle en achète {b} de plus. Maintenant elle a {c} pommes.",
        "Il y a {a} oiseaux dans l’arbre. {b} s’envolent. Il reste {c} oiseaux.",
        "Une boîte contient {a} crayons. {b} boîtes contiennent {c} crayons.",
    ),
    "es": (
        "Ana tiene {a} manzanas. Compra {b} más. Ahora tiene {c} manzanas.",
        "Hay {a} pájaros en el árbol. {b} se van volando. Quedan {c} pájaros.",
        "Una caja contiene {a} lápices. {b} cajas contienen {c} lápices.",
    ),
    "it": (
        "Anna ha {a} mele. Ne compra altre {b}. Ora ha {c} mele.",
        "Ci sono {a} uccelli sull’albero. {b} volano via. Restano {c} uccelli.",
        "Una scatola contiene {a} matite. {b} scatole contengono {c} matite.",
    ),
    "pt": (
        "Ana tem {a} maçãs. Ela compra mais {b}. Agora ela tem {c} maçãs.",
        "Há {a} pássaros na árvore. {b} voam embora. Restam {c} pássaros.",
        "Uma caixa contém {a} lápis. {b} caixas contêm {c} lápis.",
    ),
    "ru": (
        "У Анны яблок: {a}. Она купила ещё {b}. Теперь у неё яблок: {c}.",
        "На дереве птиц: {a}. Улетело: {b}. Осталось птиц: {c}.",
        "В одной коробке карандашей: {a}. Коробок: {b}. Всего карандашей: {c}.",
    ),
    "zh": (
        "安娜有{a}个苹果。她又买了{b}个。现在她有{c}个苹果。",
        "树上有{a}只鸟。飞走了{b}只。还剩{c}只鸟。",
        "一个盒子装{a}支铅笔。{b}个盒子装{c}支铅笔。",
    ),
    "ja": (
        "アンナはりんごを{a}個持っています。さらに{b}個買いました。今は{c}個持っています。",
        "木に鳥が{a}羽います。{b}羽が飛んで行きました。残りは{c}羽です。",
        "一箱に鉛筆が{a}本入っています。{b}箱では{c}本です。",
    ),
    "ko": (
        "안나는 사과를 {a}개 가지고 있습니다. {b}개를 더 샀습니다. 이제 사과가 {c}개 있습니다.",
        "나무에 새가 {a}마리 있습니다. {b}마리가 날아갔습니다. {c}마리가 남았습니다.",
        "한 상자에 연필이 {a}자루 있습니다. {b}상자에는 {c}자루가 있습니다.",
    ),
    "ar": (
        "عدد التفاحات عند آنا {a}. اشترت {b} أخرى. عندها الآن {c}.",
        "عدد الطيور على الشجرة {a}. طار منها {b}. بقي منها {c}.",
        "عدد الأقلام في الصندوق {a}. عدد الصناديق {b}. مجموع الأقلام {c}.",
    ),
    "hi": (
        "अन्ना के पास {a} सेब हैं। वह {b} और खरीदती है। अब उसके पास {c} सेब हैं।",
        "पेड़ पर {a} पक्षी हैं। {b} उड़ जाते हैं। {c} पक्षी बचते हैं।",
        "एक डिब्बे में {a} पेंसिलें हैं। {b} डिब्बों में {c} पेंसिलें हैं।",
    ),
}
